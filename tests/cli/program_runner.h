#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

namespace adder::tests {

inline const char* const kProgram = ADDER_BINARY_DIR "/adder";

// A task and a model that train in a moment; the keys of [train] are to follow.
inline const std::string kSmallRun = R"([task]
name = "selective_copying"
[task.selective_copying]
noise = 12
tokens = 3
vocab_size = 8
evaluation_sequences = 20
[model]
d_model = 16
n_layer = 2
vocab_size = 8
[train]
)";

struct Outcome {
  int code;
  std::string output;  // stdout and stderr
};

// Runs the program through a shell; `before` is what the shell does first, `streams` where the output goes.
inline Outcome run(const std::string& arguments, const std::string& before = "", const std::string& streams = "2>&1") {
  const std::string command = before + std::string(kProgram) + " " + arguments + " " + streams;
  FILE* pipe = ::popen(command.c_str(), "r");
  std::string output;
  char buffer[4096];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0;) output.append(buffer, n);
  const int status = ::pclose(pipe);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
}

inline std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace adder::tests
