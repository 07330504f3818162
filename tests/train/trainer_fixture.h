#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "adder/models/load.h"
#include "adder/train/trainer.h"
#include "adder/weights/checkpoint_folder.h"
#include "tests/device.h"

// Small runs in a folder of their own, and what they leave there.
namespace adder::tests {

namespace fs = std::filesystem;
using train::RunConfig;

class Trainer : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("adder-trainer-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  RunConfig config(const std::string& run) const {
    RunConfig c;
    c.task.name = "selective_copying";
    c.task.selective_copying = {.noise = 12, .tokens = 3, .vocab_size = 8, .evaluation_sequences = 20};
    c.model.d_model = 16;
    c.model.n_layer = 2;
    c.model.vocab_size = 8;
    c.model.residual_dropout = 0.1;
    c.train.device = current_device() == Device::kCuda ? "cuda" : "cpu";
    c.train.out = (folder_ / c.train.device / run).string();
    c.train.steps = 12;
    c.train.batch = 4;
    c.train.accumulate = 2;
    c.train.eval_every = 5;
    c.train.checkpoint_every = 4;
    c.train.optimizer.schedule = "cosine";
    c.train.optimizer.warmup_steps = 3;
    return c;
  }

  // The bytes of the tensor files of a run's last checkpoint.
  static std::string weights_of(const RunConfig& c) {
    std::string all;
    for (const char* file : {"model.safetensors", "training.safetensors"}) {
      const fs::path path = fs::path(c.train.out) / weights::checkpoint_name(c.train.steps) / file;
      std::ifstream in(path, std::ios::binary);
      EXPECT_TRUE(in.good()) << path;
      all += std::string(std::istreambuf_iterator<char>(in), {});
    }
    return all;
  }

  // The losses of the training steps in metrics.jsonl.
  static std::vector<double> losses_of(const RunConfig& c) {
    std::ifstream in(fs::path(c.train.out) / "metrics.jsonl");
    std::vector<double> losses;
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("loss")) losses.push_back(json["loss"]);
    }
    return losses;
  }

  static models::MambaLM model_of(const RunConfig& c) { return models::load_model(c.train.out).model; }

  static train::TrainHooks stop_after(int64_t steps) {
    auto left = std::make_shared<int64_t>(steps);
    train::TrainHooks hooks;
    hooks.stop_requested = [left] { return --*left == 0; };
    return hooks;
  }

  fs::path folder_;
};

}  // namespace adder::tests
