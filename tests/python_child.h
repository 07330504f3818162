#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <utility>

#include "adder/core/files.h"

// Tests that compare with a Python package: its Python, the one in .venv, runs as a child in a folder of the test's
// own.
namespace adder::tests {

class PythonTest : public testing::Test {
 protected:
  // Skips where there is no Python or it lacks one of the modules, "safetensors, numpy".
  void prepare(const std::string& modules) {
    if (!std::filesystem::exists(kPython)) GTEST_SKIP() << "no Python at .venv/bin/python";
    std::string name = testing::TempDir() + "adder_python_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    static std::map<std::string, bool> imported;  // once: importing takes seconds
    if (!imported.contains(modules)) imported[modules] = python("import " + modules).first == 0;
    if (!imported[modules]) GTEST_SKIP() << "that Python cannot import " << modules;
  }
  void TearDown() override {
    if (!folder_.empty()) std::filesystem::remove_all(folder_);
  }

  // Runs a script in the test's folder; its exit status and output.
  std::pair<int, std::string> python(const std::string& script) const {
    core::write_file_atomically(folder_ / "script.py", script);
    const std::string command = "cd '" + folder_.string() + "' && '" + kPython + "' script.py 2>&1";
    FILE* pipe = ::popen(command.c_str(), "r");
    if (!pipe) return {-1, "cannot start a shell"};
    std::string output;
    char buffer[4096];
    while (const size_t count = std::fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, count);
    const int status = ::pclose(pipe);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
  }

  std::string read(const std::string& name) const {
    const core::MappedFile file(folder_ / name);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }

  std::filesystem::path folder_;

 private:
  const std::string kPython = std::string(ADDER_SOURCE_DIR) + "/.venv/bin/python";
};

}  // namespace adder::tests
