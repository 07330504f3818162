#include "adder/train/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "adder/core/error.h"
#include "tests/train/trainer_fixture.h"

namespace adder::tests {
namespace {

using testing::HasSubstr;

// A right hash says that a file is as it was written, not who wrote it.
TEST_F(Trainer, RefusesACheckpointOfAnotherForm) {
  const RunConfig c = config("run");
  train::train(c, false, stop_after(2));
  const fs::path path = fs::path(c.train.out) / weights::checkpoint_name(2);
  const auto rewritten = [&](const std::function<void(weights::CheckpointContent&)>& change) {
    weights::CheckpointContent content;
    {
      const weights::CheckpointFolder folder(path);
      content.state = folder.state();
      for (const char* file : {"model.safetensors", "training.safetensors"})
        content.files.push_back({file, folder.tensors(file)});
    }
    const weights::CheckpointContent good = content;
    change(content);
    weights::write_checkpoint_folder(path, content);
    std::string told;
    try {
      train::train(c, true, stop_after(1));
    } catch (const Error& error) {
      told = error.what();
    }
    weights::write_checkpoint_folder(path, good);
    return told;
  };
  EXPECT_THAT(rewritten([](auto& content) { content.state["step"] = "2"; }),
              HasSubstr("its state's 'step' must be a whole number from 0, got \"2\""));
  EXPECT_THAT(rewritten([](auto& content) { content.state["tokens"] = -1; }), HasSubstr("'tokens' must be"));
  EXPECT_THAT(rewritten([](auto& content) { content.state["best_loss"] = "low"; }),
              HasSubstr("'best_loss' must be a number, got \"low\""));
  // States of layers that are not all there, one far beyond the model's.
  for (const std::string name : {"carried.99999999999.conv", "carried.0.conv", "carried.1.ssm"})
    EXPECT_THAT(rewritten([&](auto& content) { content.files[1].tensors.emplace_back(name, torch::zeros(1)); }),
                HasSubstr("layer 0 is not complete"))
        << name;
}

}  // namespace
}  // namespace adder::tests
