#include "adder/train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <fstream>

#include "adder/core/error.h"
#include "adder/models/load.h"
#include "adder/train/adamw.h"
#include "adder/weights/checkpoint_folder.h"

namespace adder::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::ThrowsMessage;
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
    c.train.out = (folder_ / run).string();
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

  static train::TrainHooks stop_after(int64_t steps) {
    auto left = std::make_shared<int64_t>(steps);
    train::TrainHooks hooks;
    hooks.stop_requested = [left] { return --*left == 0; };
    return hooks;
  }

  fs::path folder_;
};

TEST_F(Trainer, ResumedRunIsBitEqual) {
  const RunConfig whole = config("whole"), parts = config("parts");
  train::train(whole, false, {});
  EXPECT_TRUE(train::train(parts, false, stop_after(3)).interrupted);
  EXPECT_TRUE(train::train(parts, true, stop_after(4)).interrupted);
  const train::TrainResult last = train::train(parts, true, {});
  EXPECT_FALSE(last.interrupted);
  EXPECT_EQ(last.steps, 12);
  EXPECT_EQ(weights_of(whole), weights_of(parts));
}

TEST_F(Trainer, CarriedStateResumesBitEqual) {
  const fs::path text = folder_ / "text.txt";
  std::ofstream out(text);
  for (int i = 0; i < 300; ++i) out << "words " << i * i << "\n";
  out.close();
  const auto of = [&](const std::string& run) {
    RunConfig c = config(run);
    c.task.name = "language_model";
    c.task.language_model.files = {text.string()};
    c.task.language_model.windows = "carried";
    c.task.language_model.length = 16;
    c.model.vocab_size = 256;
    return c;
  };
  const RunConfig whole = of("whole"), parts = of("parts");
  train::train(whole, false, {});
  train::train(parts, false, stop_after(5));
  train::train(parts, true, {});
  EXPECT_EQ(weights_of(whole), weights_of(parts));
}

TEST_F(Trainer, DamagedCheckpointIsSkipped) {
  const RunConfig whole = config("whole"), parts = config("parts");
  train::train(whole, false, {});
  train::train(parts, false, stop_after(9));
  {
    std::fstream file(fs::path(parts.train.out) / weights::checkpoint_name(9) / "model.safetensors",
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-3, std::ios::end);
    file.put('\x7f');
  }
  train::train(parts, true, {});  // goes back to step 8
  EXPECT_EQ(weights_of(whole), weights_of(parts));
}

TEST_F(Trainer, KeepsTheLastCheckpointsAndTheBest) {
  RunConfig c = config("run");
  c.train.steps = 20;
  train::train(c, false, {});
  const auto kept = weights::list_checkpoints(c.train.out);
  ASSERT_EQ(kept.size(), 2);
  EXPECT_EQ(kept[1].step, 20);
  EXPECT_TRUE(fs::exists(fs::path(c.train.out) / "best" / "checkpoint.json"));
  const models::LoadedModel loaded = models::load_model(c.train.out, true);
  EXPECT_EQ(loaded.path.filename(), "best");
}

TEST_F(Trainer, MetricsHaveEachStepOnce) {
  RunConfig c = config("run");
  c.train.log_every = 1;
  c.train.checkpoint_every = 5;
  train::train(c, false, stop_after(7));
  fs::remove_all(fs::path(c.train.out) /
                 weights::checkpoint_name(7));  // as if killed: back to step 5, lines 6 and 7 are written again
  train::train(c, true, {});
  std::ifstream in(fs::path(c.train.out) / "metrics.jsonl");
  std::vector<int64_t> steps;
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.contains("loss")) steps.push_back(json["step"]);
  }
  std::vector<int64_t> expected(12);
  std::iota(expected.begin(), expected.end(), 1);
  EXPECT_EQ(steps, expected);
}

TEST_F(Trainer, RefusesAnotherConfiguration) {
  RunConfig c = config("run");
  train::train(c, false, stop_after(2));
  EXPECT_THAT([&] { train::train(c, false, {}); }, ThrowsMessage<Error>(HasSubstr("holds a run already")));
  c.train.optimizer.lr = 5e-3;
  EXPECT_THAT([&] { train::train(c, true, {}); },
              ThrowsMessage<Error>(HasSubstr("train.optimizer.lr was 0.001, now it is 0.005")));
  c = config("run");
  c.train.steps = 15;  // may change
  EXPECT_EQ(train::train(c, true, {}).steps, 15);
}

TEST_F(Trainer, RefusesASmallVocabulary) {
  RunConfig c = config("run");
  c.model.vocab_size = 7;
  EXPECT_THAT([&] { train::train(c, false, {}); },
              ThrowsMessage<Error>(HasSubstr("model.vocab_size must be at least the task's 8 tokens, got 7")));
  EXPECT_FALSE(fs::exists(c.train.out));
}

TEST_F(Trainer, StopsAtALossThatIsNotFinite) {
  RunConfig c = config("run");
  c.train.optimizer.lr = 1e30;
  c.train.optimizer.warmup_steps = 0;
  c.train.optimizer.clip = 0;
  EXPECT_THAT([&] { train::train(c, false, {}); },
              ThrowsMessage<Error>(testing::AllOf(HasSubstr("training stopped in step "),
                                                  HasSubstr("first not finite: the output of backbone."))));
}

TEST(AdamWGroups, DecayPullsAtMatricesOnly) {
  models::MambaLMOptions options;
  options.mixer.selective_B = options.mixer.selective_C = false;
  options.tie_embeddings = false;
  options.norm = "layer";
  const models::MambaLM model(options);
  for (const auto& p : model->named_parameters()) {
    const std::string& name = p.key();
    const bool matrix = name.find("proj.weight") != std::string::npos ||
                        name.find("conv1d.weight") != std::string::npos || name == "lm_head.weight";
    EXPECT_EQ(train::is_decayed(name), matrix) << name;
  }
}

TEST(AdamWSteps, MatchTorchsOwn) {
  torch::manual_seed(0);
  models::MambaLMOptions options;
  options.d_model = 16;
  options.vocab_size = 8;
  models::MambaLM ours(options), theirs(options);
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : theirs->named_parameters()) p.value().copy_(ours->named_parameters()[p.key()]);
  }
  train::OptimizerOptions o;
  o.lr = 1e-2;
  train::AdamW optimizer(*ours, o);
  std::vector<torch::Tensor> decayed, rest;
  for (auto& p : theirs->named_parameters()) (train::is_decayed(p.key()) ? decayed : rest).push_back(p.value());
  const auto group = [&](std::vector<torch::Tensor> parameters, double decay) {
    return torch::optim::OptimizerParamGroup(
        std::move(parameters),
        std::make_unique<torch::optim::AdamWOptions>(
            torch::optim::AdamWOptions(o.lr).betas({o.beta1, o.beta2}).eps(o.eps).weight_decay(decay)));
  };
  torch::optim::AdamW reference({group(decayed, o.weight_decay), group(rest, 0)}, torch::optim::AdamWOptions(o.lr));
  for (int step = 0; step < 5; ++step) {
    const torch::Tensor ids = torch::randint(8, {4, 20}, torch::kLong),
                        targets = torch::randint(8, {4, 20}, torch::kLong);
    optimizer.zero_grad();
    ours->loss(ids, targets).mean.backward();
    optimizer.step(o.lr, optimizer.gradient_norm());
    reference.zero_grad();
    theirs->loss(ids, targets).mean.backward();
    torch::nn::utils::clip_grad_norm_(theirs->parameters(), o.clip);
    reference.step();
  }
  for (auto& p : theirs->named_parameters())
    EXPECT_LT((p.value() - ours->named_parameters()[p.key()]).abs().max().item<double>(), 2e-5) << p.key();
}

TEST(LearningRate, Schedules) {
  train::OptimizerOptions o;
  o.lr = 1;
  o.min_lr = 0.1;
  o.warmup_steps = 10;
  EXPECT_DOUBLE_EQ(train::learning_rate(o, 0, 110), 0.1);
  EXPECT_DOUBLE_EQ(train::learning_rate(o, 9, 110), 1);
  EXPECT_DOUBLE_EQ(train::learning_rate(o, 100, 110), 1);
  o.schedule = "linear";
  EXPECT_DOUBLE_EQ(train::learning_rate(o, 60, 110), 0.55);
  o.schedule = "cosine";
  EXPECT_NEAR(train::learning_rate(o, 60, 110), 0.55, 1e-12);
  EXPECT_NEAR(train::learning_rate(o, 110, 110), 0.1, 1e-12);
  o.decay_steps = 40;
  EXPECT_DOUBLE_EQ(train::learning_rate(o, 60, 110), 1);
  EXPECT_NEAR(train::learning_rate(o, 90, 110), 0.55, 1e-12);
  o.decay_steps = 0;
  EXPECT_NEAR(train::learning_rate(o, 35, 110), 0.1 + 0.9 * 0.5 * (1 + std::cos(0.25 * M_PI)), 1e-12);
}

}  // namespace
}  // namespace adder::tests
