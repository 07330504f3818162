#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <string>
#include <vector>

#include "adder/core/files.h"
#include "adder/weights/checkpoint_folder.h"
#include "tests/error_of.h"

// What the tests of checkpoints and of the folders that hold them share.
namespace adder::weights {

namespace fs = std::filesystem;

inline std::string read(const fs::path& path) {
  const core::MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Without waiting for the disk.
inline void replace(const fs::path& path, const std::string& contents) {
  fs::remove(path);
  core::FileWriter(path, path).write(contents);
}

class Checkpoint : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_checkpoint_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "step-00000007";
    model_ = path_ / "model.safetensors";
    torch::manual_seed(1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Two tiny tensors in two files.
  CheckpointContent small() const {
    return {{{"model.safetensors", {{"w", weight_}}}, {"optimizer.safetensors", {{"m.é", moment_}}}},
            {{"step", 7}, {"loss", 1.5e-7}, {"rng", {{"seed", 18446744073709551615u}}}, {"name", "é"}}};
  }

  // The error on opening, without the path of the checkpoint that it must hold.
  std::string error_on_opening(Verify verify = Verify::kFiles) const {
    std::string text = error_of([&] { CheckpointFolder checkpoint(path_, verify); });
    if (text == "no error") return text;
    EXPECT_THAT(text, testing::StartsWith(path_.string()));
    return text.substr(path_.string().size());
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : fs::directory_iterator(folder_)) result.push_back(entry.path().filename().string());
    std::ranges::sort(result);
    return result;
  }

  fs::path folder_, path_, model_;
  at::Tensor weight_ = at::tensor({1.5f, -2.0f, 3.25f});
  at::Tensor moment_ = at::tensor({1, 0}).to(at::kBool);
};

}  // namespace adder::weights
