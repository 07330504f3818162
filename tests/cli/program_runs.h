#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/cli/program_runner.h"

// What the tests of the program's behaviour on bad input and in trouble share. In arguments and messages "@" stands for
// the test's folder.
namespace adder::tests {

namespace fs = std::filesystem;

inline const std::string kConfig = kSmallRun + R"(steps = 6
batch = 4
checkpoint_every = 3
threads = 1
)";
inline const std::string kTrain = "train @/run.toml --set train.out=@/out ";
inline const std::string kLanguage =
    "--set task.name=language_model --set task.language_model.length=16 --set model.vocab_size=256 ";
inline const std::string kFiles = "--set task.language_model.files=";
inline const std::string kTokenFile = kTrain + kLanguage + "--set task.language_model.token_file=@/tokens.bin ";

inline void put(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline void cut(const fs::path& path) {
  fs::resize_file(path, fs::file_size(path) - 5);
}

inline std::string filled(std::string text, const fs::path& folder) {
  for (size_t at = 0; (at = text.find('@', at)) != text.npos; at += folder.string().size())
    text.replace(at, 1, folder.string());
  return text;
}

// A file of uint16 tokens and what describes it.
inline std::vector<std::pair<std::string, std::string>> token_file(char token, int version = 1, int missing = 0) {
  constexpr int kCount = 400;
  std::string bytes;
  for (int i = 0; i < kCount - missing; ++i) bytes += {token, '\0'};
  const nlohmann::json sidecar = {{"format", "adder-tokens"}, {"version", version}, {"dtype", "uint16"},
                                  {"vocab_size", 8},          {"count", kCount},    {"documents", 0}};
  return {{"tokens.bin", bytes}, {"tokens.bin.json", sidecar.dump()}};
}

// Every path below the folder with its bytes; of a run's lock only that it is there, since it holds a process's number.
inline std::map<std::string, std::string> snapshot(const fs::path& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    std::ostringstream bytes;
    if (entry.is_regular_file() && entry.path().filename() != ".lock")
      bytes << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    found[entry.path().lexically_relative(folder).string()] = bytes.str();
  }
  return found;
}

inline std::vector<std::string> differences(const std::map<std::string, std::string>& before,
                                            const std::map<std::string, std::string>& after) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : after)
    if (!before.contains(name) || before.at(name) != bytes) names.push_back(name);
  for (const auto& [name, bytes] : before)
    if (!after.contains(name)) names.push_back(name);
  return names;
}

inline std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

// The limit makes write() stop half-way, as a full disk does; the shell counts in blocks of 512 bytes.
inline std::string with_files_of_at_most(int64_t blocks) {
  return "trap '' XFSZ; ulimit -f " + std::to_string(blocks) + "; ";
}

// A folder for each test, with run.toml, text.txt (1,040 bytes) and, on request, two finished runs of the program:
// "copying" (8 tokens) and "bytes" (256), with checkpoints of steps 3 and 6.
class ProgramRuns : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    suite_ = fs::temp_directory_path() / ("adder-program-runs-" + std::to_string(::getpid()));
    fs::remove_all(suite_);
    fs::create_directories(suite_);
    fill(suite_);
    const std::string train = "train @/run.toml --set train.out=@/";
    for (const std::string& run_of : {train + "copying", train + "bytes " + kLanguage + kFiles + "@/text.txt"}) {
      const Outcome outcome = run(filled(run_of, suite_));
      ASSERT_EQ(outcome.code, 0) << outcome.output;
    }
  }
  static void TearDownTestSuite() { fs::remove_all(suite_); }

  void SetUp() override {
    folder_ = suite_ / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::create_directory(folder_);
    fill(folder_);
  }

  static void fill(const fs::path& folder) {
    put(folder / "run.toml", kConfig);
    std::string text;
    for (int i = 0; i < 40; ++i) text += "hello world, a small text\n";
    put(folder / "text.txt", text);
  }

  static void copy_runs(const std::string& arguments, const fs::path& folder) {
    for (const std::string name : {"copying", "bytes"})
      if (arguments.find("@/" + name) != arguments.npos)
        fs::copy(suite_ / name, folder / name, fs::copy_options::recursive);
  }

  // The program with "@" filled in.
  Outcome program(const std::string& arguments, const std::string& before = "",
                  const std::string& streams = "2>&1") const {
    return run(filled(arguments, folder_), before, streams);
  }

  static inline fs::path suite_;
  fs::path folder_;
};

}  // namespace adder::tests
