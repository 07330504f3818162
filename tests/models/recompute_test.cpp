// Memory for time: computing again, and long rows in segments, give the gradients that there were.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/core/error.h"
#include "adder/device/device.h"
#include "adder/models/mamba_lm.h"
#include "adder/tasks/step.h"
#include "tests/device.h"
#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using torch::Tensor;

torch::Device where() {
  return current_device() == Device::kCuda ? torch::kCUDA : torch::kCPU;
}

models::MambaLM model_with(const std::function<void(models::MambaLMOptions&)>& change = {}) {
  torch::manual_seed(2);
  models::MambaLMOptions options;
  options.d_model = 24;
  options.n_layer = 3;
  options.vocab_size = 30;
  if (change) change(options);
  models::MambaLM model(options);
  model->to(where());
  return model;
}

std::map<std::string, Tensor> gradients(models::MambaLM& model) {
  std::map<std::string, Tensor> all;
  for (auto& parameter : model->named_parameters()) {
    EXPECT_TRUE(parameter.value().grad().defined()) << parameter.key();
    all[parameter.key()] = parameter.value().grad().clone();
    parameter.value().mutable_grad() = Tensor();
  }
  return all;
}

tasks::TaskBatch batch_of(int64_t rows, int64_t length) {
  tasks::TaskBatch batch;
  torch::manual_seed(5);
  const Tensor ids = torch::randint(30, {rows, length + 1}, torch::kLong);
  batch.input = ids.slice(1, 0, length).clone().to(where());
  batch.target = ids.slice(1, 1, length + 1).clone();
  batch.target.slice(1, 3, 9).fill_(tasks::kIgnored);
  batch.target = batch.target.to(where());
  return batch;
}

models::LMState random_state(models::MambaLM& model, int64_t rows) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(4);
  return model->hidden(torch::randint(30, {rows, 20}, torch::kLong).to(where())).second;
}

struct Results {
  Tensor loss;
  std::map<std::string, Tensor> parameters;
  std::vector<Tensor> states;  // behind the rows, and the gradients of those they began with
};

// Two windows one behind the other, with gradients through the states between them and into those before.
Results run(models::MambaLM& model, nn::Recompute recompute) {
  model->set_recompute(recompute);
  models::LMState state = random_state(model, 2);
  for (nn::MambaState& layer : state.layers) {
    layer.conv = layer.conv.detach().requires_grad_();
    layer.ssm = layer.ssm.detach().requires_grad_();
  }
  const tasks::TaskBatch batch = batch_of(2, 50);
  torch::manual_seed(9);  // of dropout
  const auto first = model->loss(batch.input.slice(1, 0, 30), batch.target.slice(1, 0, 30), state);
  const auto second = model->loss(batch.input.slice(1, 30), batch.target.slice(1, 30), first.state);
  (first.mean + 2 * second.mean).backward();
  Results results{(first.mean + second.mean).detach(), gradients(model), {}};
  for (size_t i = 0; i < state.layers.size(); ++i) {
    results.states.insert(results.states.end(),
                          {second.state.layers[i].conv.detach(), second.state.layers[i].ssm.detach(),
                           state.layers[i].conv.grad(), state.layers[i].ssm.grad()});
  }
  return results;
}

TEST(Recompute, GivesTheSameBits) {
  for_each_device([&] {
    for (const double dropout : {0.0, 0.2})
      for (const auto type : {torch::kFloat, torch::kBFloat16}) {
        models::MambaLM model = model_with([&](auto& o) { o.residual_dropout = o.embedding_dropout = dropout; });
        model->set_activation_type(type);
        const Results expected = run(model, nn::Recompute::kNone);
        for (const auto recompute : {nn::Recompute::kMixer, nn::Recompute::kBlock}) {
          const Results got = run(model, recompute);
          EXPECT_TRUE(torch::equal(got.loss, expected.loss));
          for (const auto& [name, gradient] : expected.parameters)
            EXPECT_TRUE(torch::equal(got.parameters.at(name), gradient)) << name;
          for (size_t i = 0; i < expected.states.size(); ++i)
            EXPECT_TRUE(torch::equal(got.states[i], expected.states[i])) << i;
        }
      }
  });
}

TEST(Recompute, FrozenParametersStayWithoutGradient) {
  for_each_device([&] {
    models::MambaLM model = model_with();
    model->set_recompute(nn::Recompute::kBlock);
    for (auto& parameter : model->named_parameters())
      if (parameter.key().find("layers.1.") != std::string::npos) parameter.value().requires_grad_(false);
    const tasks::TaskBatch batch = batch_of(1, 12);
    model->loss(batch.input, batch.target).mean.backward();
    for (const auto& parameter : model->named_parameters())
      EXPECT_EQ(parameter.value().grad().defined(), parameter.value().requires_grad()) << parameter.key();
  });
}

TEST(Recompute, TakesLessMemory) {
  ADDER_NEEDS_CUDA();
  current_device() = Device::kCuda;
  models::MambaLM model = model_with([](auto& o) { o.d_model = 128, o.n_layer = 8; });
  const tasks::TaskBatch batch = batch_of(4, 4096);
  const auto peak = [&](nn::Recompute recompute, int64_t segment) {
    model->set_recompute(recompute);
    device::synchronize(torch::kCUDA);
    device::reset_peak_memory(torch::Device(torch::kCUDA, 0));
    tasks::batch_backward(*model, batch, {}, 1, segment);
    device::synchronize(torch::Device(torch::kCUDA, 0));
    gradients(model);
    return device::memory(torch::Device(torch::kCUDA, 0)).peak;
  };
  const auto none = static_cast<double>(peak(nn::Recompute::kNone, 0));
  EXPECT_LT(static_cast<double>(peak(nn::Recompute::kMixer, 0)), 0.45 * none);
  EXPECT_LT(static_cast<double>(peak(nn::Recompute::kBlock, 0)), 0.45 * none);
  EXPECT_LT(static_cast<double>(peak(nn::Recompute::kNone, 256)), 0.2 * none);
  current_device() = Device::kCpu;
}

TEST(Segments, TheGradientIsThatOfTheWhole) {
  for_each_device([&] {
    models::MambaLM model = model_with();
    const tasks::TaskBatch batch = batch_of(2, 100);
    for (const bool from_zeros : {true, false}) {
      const models::LMState state = from_zeros ? models::LMState() : random_state(model, 2);
      const tasks::BatchStep whole = tasks::batch_backward(*model, batch, state, 0.5);
      const std::map<std::string, Tensor> expected = gradients(model);
      // Shorter than the convolution's window, not a divisor, a divisor, one that leaves a single step.
      for (const int64_t segment : {2, 7, 25, 99}) {
        SCOPED_TRACE(segment);
        const tasks::BatchStep cut = tasks::batch_backward(*model, batch, state, 0.5, segment);
        expect_near("loss", cut.mean.to(torch::kFloat), whole.mean, {1e-6, 1e-6});
        for (size_t i = 0; i < whole.state.layers.size(); ++i)
          expect_near("state", cut.state.layers[i].ssm, whole.state.layers[i].ssm, {1e-5, 1e-6});
        const std::map<std::string, Tensor> got = gradients(model);
        for (const auto& [name, gradient] : expected) expect_near(name, got.at(name), gradient, {1e-4, 1e-6});
      }
    }
  });
}

TEST(Segments, FrozenLayersBelow) {
  for_each_device([&] {
    models::MambaLM model = model_with();
    for (auto& parameter : model->named_parameters())
      if (parameter.key().find("embedding") != std::string::npos ||
          parameter.key().find("layers.0.") != std::string::npos)
        parameter.value().requires_grad_(false);
    const tasks::TaskBatch batch = batch_of(1, 40);
    const auto of_last = [&] {
      const Tensor gradient = model->named_parameters()["backbone.layers.2.mixer.out_proj.weight"].grad().clone();
      for (auto& parameter : model->parameters()) parameter.mutable_grad() = Tensor();
      return gradient;
    };
    tasks::batch_backward(*model, batch, {}, 1);
    const Tensor expected = of_last();
    tasks::batch_backward(*model, batch, {}, 1, 9);
    expect_near("out_proj", of_last(), expected, {1e-4, 1e-6});
  });
}

// A dependency over many segments, which truncated backpropagation would not see.
TEST(Segments, GradientsReachAcrossThem) {
  for_each_device([&] {
    models::MambaLM model = model_with();
    tasks::TaskBatch batch = batch_of(1, 64);
    batch.target.fill_(tasks::kIgnored);
    batch.target.select(1, 63).fill_(7);
    tasks::batch_backward(*model, batch, {}, 1);
    const Tensor expected = gradients(model).at("backbone.embedding.weight");
    tasks::batch_backward(*model, batch, {}, 1, 8);
    const Tensor got = gradients(model).at("backbone.embedding.weight");
    const Tensor first = batch.input.select(1, 0);
    EXPECT_GT(expected.index_select(0, first).abs().max().item<double>(), 0);
    expect_near("embedding", got, expected, {1e-4, 1e-9});
  });
}

TEST(Segments, WhatCannotBeCut) {
  using testing::HasSubstr, testing::ThrowsMessage;
  models::MambaLM model = model_with([](auto& o) { o.residual_dropout = 0.1; });
  tasks::TaskBatch batch = batch_of(1, 20);
  EXPECT_THAT([&] { tasks::batch_backward(*model, batch, {}, 1, 8); }, ThrowsMessage<Error>(HasSubstr("dropout")));
  models::MambaLM without = model_with();
  batch.starts = torch::zeros({1, 20}, torch::kBool);
  EXPECT_THAT([&] { tasks::batch_backward(*without, batch, {}, 1, 8); }, ThrowsMessage<Error>(HasSubstr("documents")));
  EXPECT_THAT([] { nn::parse_recompute("all"); },
              ThrowsMessage<Error>(HasSubstr("must be none, mixer or block, got \"all\"")));
}

}  // namespace
}  // namespace adder::tests
