#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <map>

#include "adder/core/error.h"
#include "adder/models/load.h"
#include "adder/train/trainer.h"
#include "tests/train/trainer_fixture.h"

// What a run refuses before it begins, and what it stops at.
namespace adder::tests {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using torch::Tensor;

TEST_F(Trainer, RefusesAnotherConfiguration) {
  for_each_device([&] {
    RunConfig c = config("run");
    train::train(c, false, stop_after(2));
    EXPECT_THAT([&] { train::train(c, false, {}); }, ThrowsMessage<Error>(HasSubstr("holds a run already")));
    c.train.optimizer.lr = 5e-3;
    EXPECT_THAT([&] { train::train(c, true, {}); },
                ThrowsMessage<Error>(HasSubstr("train.optimizer.lr was 0.001, now it is 0.005")));
    c = config("run");
    c.train.steps = 15;  // may change
    EXPECT_EQ(train::train(c, true, {}).steps, 15);
  });
}

TEST_F(Trainer, RefusesSegmentsOfWhatCannotBeCutBeforeItWrites) {
  RunConfig c = config("run");
  c.train.segment = 5;
  EXPECT_THAT([&] { train::train(c, false, {}); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("train.segment needs model.residual_dropout = 0")));
  EXPECT_FALSE(fs::exists(c.train.out));
}

TEST_F(Trainer, RefusesASmallVocabulary) {
  RunConfig c = config("run");
  c.model.vocab_size = 7;
  EXPECT_THAT([&] { train::train(c, false, {}); },
              ThrowsMessage<Error>(HasSubstr("model.vocab_size must be at least the task's 8 tokens, got 7")));
  EXPECT_FALSE(fs::exists(c.train.out));
}

TEST_F(Trainer, StopsAtALossThatIsNotFinite) {
  for_each_device([&] {
    RunConfig c = config("run");
    c.train.optimizer.lr = 1e30;
    c.train.optimizer.warmup_steps = 0;
    c.train.optimizer.clip = 0;
    EXPECT_THAT([&] { train::train(c, false, {}); },
                ThrowsMessage<Error>(testing::AllOf(HasSubstr("training stopped in step "),
                                                    HasSubstr("first not finite: the output of backbone."))));
  });
}

TEST_F(Trainer, StopsAtAGradientThatIsNotFinite) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::string text = std::isnan(bad) ? "nan" : "inf";
    RunConfig c = config(text);
    c.train.sample_every = 3;
    std::map<std::string, Tensor> before;
    train::TrainHooks hooks;
    hooks.sample = [&](models::MambaLM& model, int64_t) {
      for (const auto& p : model->named_parameters()) {
        before[p.key()] = p.value().detach().clone();
        if (p.key() == "backbone.layers.0.mixer.D")
          p.value().register_hook([bad](const Tensor& gradient) { return torch::full_like(gradient, bad); });
      }
    };
    EXPECT_THAT([&] { train::train(c, false, hooks); },
                ThrowsMessage<Error>(
                    testing::AllOf(HasSubstr("training stopped in step 4: the gradient norm is " + text),
                                   HasSubstr("first not finite: the gradient of backbone.layers.0.mixer.D."))));
    const models::LoadedModel saved = models::load_model(c.train.out);
    EXPECT_EQ(saved.state["step"], 3);
    ASSERT_FALSE(before.empty());
    for (const auto& p : saved.model->named_parameters())
      EXPECT_TRUE(torch::equal(p.value(), before[p.key()])) << p.key();
  }
}

}  // namespace
}  // namespace adder::tests
