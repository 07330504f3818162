#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "adder/nn/parameters.h"
#include "adder/train/adamw.h"

namespace adder::tests {
namespace {

using torch::Tensor;

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
  for (const auto& p : nn::Mamba(16, options.mixer)->named_parameters())  // a block alone, with bare names
    EXPECT_EQ(train::is_decayed(p.key()), p.key().ends_with("weight")) << p.key();
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
  std::vector<Tensor> decayed, rest;
  for (auto& p : theirs->named_parameters()) (train::is_decayed(p.key()) ? decayed : rest).push_back(p.value());
  const auto group = [&](std::vector<Tensor> parameters, double decay) {
    return torch::optim::OptimizerParamGroup(
        std::move(parameters),
        std::make_unique<torch::optim::AdamWOptions>(
            torch::optim::AdamWOptions(o.lr).betas({o.beta1, o.beta2}).eps(o.eps).weight_decay(decay)));
  };
  torch::optim::AdamW reference({group(decayed, o.weight_decay), group(rest, 0)}, torch::optim::AdamWOptions(o.lr));
  for (int step = 0; step < 5; ++step) {
    const Tensor ids = torch::randint(8, {4, 20}, torch::kLong), targets = torch::randint(8, {4, 20}, torch::kLong);
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

// What is derived from a parameter and kept while no gradient is wanted, A above all, follows the optimizer.
TEST(AdamWSteps, AreSeenByTheNextEvaluation) {
  for (const bool complex : {false, true}) {
    models::MambaLMOptions options;
    options.d_model = 16;
    options.vocab_size = 8;
    options.mixer.complex = complex;
    options.mixer.A_init = "s4d-lin";
    torch::manual_seed(0);
    models::MambaLM model(options);
    const Tensor ids = torch::randint(8, {3, 20}, torch::kLong), targets = torch::randint(8, {3, 20}, torch::kLong);
    const auto evaluated = [&](models::MambaLM& lm) {
      const torch::NoGradGuard no_grad;
      return lm->forward(ids).first;
    };
    // Only what A is made of moves, so that a stale A is all that is evaluated.
    for (auto& p : model->named_parameters())
      p.value().requires_grad_(p.key().ends_with("A_log") || p.key().ends_with("A_imag"));
    train::AdamW optimizer(*model, {});
    Tensor before = evaluated(model);
    for (int step = 0; step < 3; ++step) {
      optimizer.zero_grad();
      model->loss(ids, targets).mean.backward();
      optimizer.step(0.1, optimizer.gradient_norm());
      models::MambaLM fresh(options);
      {
        const torch::NoGradGuard no_grad;
        for (auto& p : fresh->named_parameters()) p.value().copy_(model->named_parameters()[p.key()]);
      }
      const Tensor after = evaluated(model);
      EXPECT_TRUE(torch::equal(after, evaluated(fresh))) << "step " << step << (complex ? " complex" : "");
      EXPECT_FALSE(torch::allclose(after, before, 1e-4, 1e-6)) << "step " << step << (complex ? " complex" : "");
      before = after;
    }
  }
}

// Squares of these leave the range of float32; the norm does not.
TEST(AdamWSteps, LargeAndSmallGradientsHaveANorm) {
  for (const float size : {1e20f, 1e-25f, 3.0f}) {
    nn::ParametersImpl module;
    Tensor weight = module.add("weight", torch::zeros({3})), bias = module.add("bias", torch::zeros({}));
    weight.mutable_grad() = torch::full({3}, size);
    bias.mutable_grad() = torch::full({}, -size);
    train::AdamW optimizer(module, {});
    const double norm = optimizer.gradient_norm();
    EXPECT_NEAR(norm / (2.0 * size), 1, 1e-12) << size;
    // Clipped, each is half of what clip allows; the first step of Adam goes by the sign alone.
    optimizer.step(0.25, norm);
    if (size < 1) continue;  // below eps
    EXPECT_TRUE(torch::allclose(weight, torch::full({3}, -0.25f), 1e-5, 0)) << size << weight;
    EXPECT_TRUE(torch::allclose(bias, torch::full({}, 0.25f), 1e-5, 0)) << size << bias;
  }
}

TEST(AdamWSteps, AGradientThatIsNotFiniteHasNoFiniteNorm) {
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    nn::ParametersImpl module;
    Tensor weight = module.add("weight", torch::zeros({70}));
    weight.mutable_grad() = torch::ones({70});
    weight.mutable_grad()[69] = bad;
    EXPECT_FALSE(std::isfinite(train::AdamW(module, {}).gradient_norm())) << bad;
  }
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
