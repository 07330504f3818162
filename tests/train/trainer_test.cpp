#include "adder/train/trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "adder/core/error.h"
#include "adder/device/device.h"
#include "adder/models/load.h"
#include "adder/train/adamw.h"
#include "adder/weights/checkpoint_folder.h"
#include "tests/train/trainer_fixture.h"

namespace adder::tests {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;
using torch::Tensor;

// The largest difference between two models' parameters.
double distance(const models::MambaLM& a, const models::MambaLM& b) {
  double most = 0;
  const auto others = b->named_parameters();
  for (const auto& p : a->named_parameters())
    most = std::max(most, (p.value() - others[p.key()]).abs().max().item<double>());
  return most;
}

TEST_F(Trainer, ResumedRunIsBitEqual) {
  for_each_device([&] {
    const RunConfig whole = config("whole"), parts = config("parts");
    train::train(whole, false, {});
    const train::TrainResult first = train::train(parts, false, stop_after(3));
    EXPECT_TRUE(first.interrupted);
    EXPECT_EQ(first.steps, 3);
    // 4 steps from step 3, not from the start.
    const train::TrainResult second = train::train(parts, true, stop_after(4));
    EXPECT_TRUE(second.interrupted);
    EXPECT_EQ(second.steps, 7);
    int64_t steps_here = 0;
    train::TrainHooks count;
    count.stop_requested = [&] {
      ++steps_here;
      return false;
    };
    const train::TrainResult last = train::train(parts, true, count);
    EXPECT_FALSE(last.interrupted);
    EXPECT_EQ(last.steps, 12);
    EXPECT_EQ(steps_here, 4);  // of 8 to 12, and not asked after the last
    EXPECT_EQ(weights_of(whole), weights_of(parts));
  });
}

// A run's steps in plain words, with the state carried from batch to batch or not.
models::MambaLM trained_by_hand(const RunConfig& c, bool carry) {
  torch::manual_seed(static_cast<uint64_t>(c.train.seed));
  models::MambaLM model(c.model);
  const torch::Device device = adder::device::parse(c.train.device);
  model->to(device);
  train::AdamW optimizer(*model, c.train.optimizer);
  const auto task = tasks::make_task(c.task);
  const auto source = task->training(c.train.batch, static_cast<uint64_t>(c.train.seed));
  models::LMState state;
  for (int64_t step = 0; step < c.train.steps; ++step) {
    optimizer.zero_grad();
    for (int64_t i = 0; i < c.train.accumulate; ++i) {
      tasks::TaskBatch batch = *source->next();
      batch.input = batch.input.to(device);
      batch.target = batch.target.to(device);
      const auto loss = tasks::batch_loss(*model, batch, carry && !batch.fresh ? state : models::LMState());
      (loss.mean / static_cast<double>(c.train.accumulate)).backward();
      state = loss.state.detach();
    }
    optimizer.step(train::learning_rate(c.train.optimizer, step, c.train.steps), optimizer.gradient_norm());
  }
  model->to(torch::kCPU);
  return model;
}

TEST_F(Trainer, CarriedStateResumesBitEqual) {
  for_each_device([&] {
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
      // A recorded step draws other masks than one that is not.
      if (current_device() == Device::kCuda) c.model.residual_dropout = 0;
      return c;
    };
    const RunConfig whole = of("whole"), parts = of("parts");
    train::train(whole, false, {});
    EXPECT_EQ(train::train(parts, false, stop_after(5)).steps, 5);
    train::train(parts, true, {});
    EXPECT_EQ(weights_of(whole), weights_of(parts));
    const models::MambaLM got = model_of(whole), carried = trained_by_hand(whole, true);
    EXPECT_LT(distance(got, carried), 1e-6);
    EXPECT_GT(distance(got, trained_by_hand(whole, false)), 1e-4);
  });
}

TEST_F(Trainer, DamagedCheckpointIsSkipped) {
  for_each_device([&] {
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
  });
}

TEST_F(Trainer, KeepsTheLastCheckpointsAndTheBest) {
  for_each_device([&] {
    RunConfig c = config("run");
    c.train.steps = 20;
    train::train(c, false, {});
    const auto kept = weights::list_checkpoints(c.train.out);
    ASSERT_EQ(kept.size(), 2);
    EXPECT_EQ(kept[1].step, 20);
    EXPECT_TRUE(fs::exists(fs::path(c.train.out) / "best" / "checkpoint.json"));
    const models::LoadedModel loaded = models::load_model(c.train.out, true);
    EXPECT_EQ(loaded.path.filename(), "best");
  });
}

TEST_F(Trainer, TheBestCheckpointHasTheLowestEvaluationLoss) {
  for_each_device([&] {
    RunConfig c = config("run");
    // Steps that grow: the loss falls at first, and rises when they get too long.
    c.train.optimizer.schedule = "constant";
    c.train.optimizer.lr = 10;
    c.train.optimizer.warmup_steps = 500;
    c.train.steps = 30;
    c.train.eval_every = 2;
    std::vector<std::pair<double, int64_t>> evaluations;
    train::TrainHooks hooks;
    hooks.evaluated = [&](int64_t step, const tasks::Evaluation& e) { evaluations.emplace_back(e.loss, step); };
    train::train(c, false, hooks);
    ASSERT_EQ(evaluations.size(), 15);
    const auto [loss, step] = *std::min_element(evaluations.begin(), evaluations.end());
    ASSERT_TRUE(step > 2 && step < 30) << "neither the first nor the last, or anything would do";
    models::LoadedModel best = models::load_model(c.train.out, true);
    EXPECT_EQ(best.state["step"], step);
    EXPECT_EQ(best.state["best_loss"], loss);
    best.model->to(adder::device::parse(c.train.device));
    const auto source = tasks::make_task(c.task)->evaluation(c.train.batch, false);
    EXPECT_EQ(tasks::evaluate(*best.model, *source).loss, loss);
  });
}

TEST_F(Trainer, AccumulatedBatchesAreOneBatch) {
  for_each_device([&] {
    const auto run = [&](const std::string& name, int64_t batch, int64_t accumulate) {
      RunConfig c = config(name);
      c.model.residual_dropout = 0;
      c.train.steps = 3;
      c.train.batch = batch;
      c.train.accumulate = accumulate;
      c.train.log_every = 1;
      c.train.optimizer.lr = 1e-2;
      c.train.optimizer.warmup_steps = 0;
      c.train.optimizer.clip = 0;    // clipping and Adam
      c.train.optimizer.eps = 1e-3;  // would hide the scale of the gradient
      train::train(c, false, {});
      return c;
    };
    const RunConfig whole = run("whole", 8, 1), halves = run("halves", 4, 2), one_half = run("one_half", 4, 1);
    const std::vector<double> expected = losses_of(whole), got = losses_of(halves);
    ASSERT_EQ(got.size(), 3);
    ASSERT_EQ(expected.size(), 3);
    for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(got[i], expected[i], 1e-6) << i;
    const double apart = distance(model_of(whole), model_of(halves));
    EXPECT_LT(apart, 1e-6);
    EXPECT_GT(distance(model_of(whole), model_of(one_half)), 1e-3);
  });
}

// Over several steps, so that what a step changes is seen by the next.
TEST_F(Trainer, RecomputationAndSegmentsTrainTheSameWeights) {
  for_each_device([&] {
    RunConfig plain = config("plain");
    plain.model.residual_dropout = 0;
    train::train(plain, false, {});
    for (const std::string recompute : {"mixer", "block"}) {
      RunConfig again = plain;
      again.train.out += "-" + recompute;
      again.train.recompute = recompute;
      train::train(again, false, {});
      EXPECT_EQ(weights_of(again), weights_of(plain)) << recompute;
    }
    RunConfig cut = plain;
    cut.train.out += "-segments";
    cut.train.segment = 5;
    train::train(cut, false, {});
    EXPECT_LT(distance(model_of(cut), model_of(plain)), 2e-5);
  });
}

TEST_F(Trainer, LearnsInBFloat16) {
  for_each_device([&] {
    const fs::path text = folder_ / "text.txt";
    std::ofstream out(text);
    for (int i = 0; i < 300; ++i) out << "abcdefgh";
    out.close();
    std::map<std::string, std::vector<double>> losses;
    for (const std::string precision : {"float32", "bfloat16"}) {
      RunConfig c = config(precision);
      c.task.name = "language_model";
      c.task.language_model.files = {text.string()};
      c.task.language_model.length = 32;
      c.model.vocab_size = 256;
      c.model.residual_dropout = 0;
      c.train.precision = precision;
      c.train.steps = 40;
      c.train.accumulate = 1;
      c.train.log_every = 1;
      c.train.optimizer.lr = 1e-2;
      EXPECT_TRUE(std::isfinite(train::train(c, false, {}).last->loss));
      losses[precision] = losses_of(c);
      for (const Tensor& p : model_of(c)->parameters()) EXPECT_EQ(p.scalar_type(), torch::kFloat);
    }
    const std::vector<double>&wide = losses["float32"], &narrow = losses["bfloat16"];
    EXPECT_NEAR(wide.front(), narrow.front(), 0.02);
    EXPECT_NE(wide.front(), narrow.front());
    EXPECT_LT(narrow.back(), narrow.front() / 2);
    EXPECT_NEAR(wide.back(), narrow.back(), 0.2);
  });
}

TEST_F(Trainer, MetricsHaveEachStepOnce) {
  for_each_device([&] {
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
  });
}

// Without dropout, whose masks differ, a GPU takes the CPU's steps.
TEST_F(Trainer, DevicesAgreeAndARunMovesBetweenThem) {
  ADDER_NEEDS_CUDA();
  const auto of = [&](const std::string& run, const std::string& device) {
    RunConfig c = config(run);
    c.model.residual_dropout = 0;
    c.train.log_every = 1;
    c.train.device = device;
    return c;
  };
  const RunConfig on_cpu = of("on_cpu", "cpu"), on_gpu = of("on_gpu", "cuda");
  train::train(on_cpu, false, {});
  train::train(on_gpu, false, {});
  RunConfig moved = of("moved", "cpu");
  train::train(moved, false, stop_after(4));
  moved.train.device = "cuda";
  train::train(moved, true, stop_after(4));
  moved.train.device = "cpu";
  train::train(moved, true, {});
  const std::vector<double> expected = losses_of(on_cpu);
  for (const RunConfig& c : {on_gpu, moved}) {
    const std::vector<double> got = losses_of(c);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-4) << i;
    EXPECT_LT(distance(model_of(c), model_of(on_cpu)), 1e-3);
  }
}

TEST_F(Trainer, BeginsWithTheWeightsOfAnotherRun) {
  for_each_device([&] {
    const RunConfig first = config("first");
    train::train(first, false, {});
    RunConfig still = config("still");
    still.train.init_from = first.train.out;
    still.train.seed = first.train.seed + 1;
    still.train.optimizer.lr = 1e-30;
    train::train(still, false, {});
    EXPECT_LT(distance(model_of(still), model_of(first)), 1e-20);
    // Going on with a run is not beginning it again.
    RunConfig parts = config("parts"), whole = config("whole");
    parts.train.init_from = whole.train.init_from = first.train.out;
    train::train(parts, false, stop_after(3));
    train::train(parts, true, {});
    train::train(whole, false, {});
    EXPECT_EQ(weights_of(parts), weights_of(whole));
    EXPECT_GT(distance(model_of(parts), model_of(first)), 1e-3);
    // A run that is continued before its first checkpoint begins as if it were new.
    RunConfig early = config("early");
    early.train.init_from = first.train.out;
    train::train(early, true, {});
    EXPECT_EQ(weights_of(early), weights_of(whole));

    RunConfig other = config("other");
    other.train.init_from = first.train.out;
    other.model.d_model *= 2;
    EXPECT_THAT([&] { train::train(other, false, {}); },
                ThrowsMessage<Error>(AllOf(HasSubstr("do not fit the model"), HasSubstr("must have shape"))));
    EXPECT_FALSE(fs::exists(other.train.out));
    other.train.init_from = (folder_ / "nothing").string();
    EXPECT_THAT([&] { train::train(other, false, {}); }, ThrowsMessage<Error>(HasSubstr("nothing")));
  });
}

}  // namespace
}  // namespace adder::tests
