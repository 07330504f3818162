// A model on the GPU does what it does on the CPU.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/infer/generate.h"
#include "adder/models/mamba_lm.h"
#include "tests/device.h"
#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

struct Variant {
  std::string name;
  models::MambaLMOptions options;
};

std::vector<Variant> variants() {
  std::vector<Variant> rows;
  const auto row = [&](const std::string& name, auto change) {
    Variant v;
    v.name = name;
    v.options.d_model = 64;
    v.options.n_layer = 2;
    v.options.vocab_size = 61;
    change(v.options);
    rows.push_back(v);
  };
  row("base", [](auto&) {});
  row("odd_width", [](auto& o) { o.d_model = 37; });
  row("complex_zoh", [](auto& o) { o.mixer.complex = true, o.mixer.discretization = "zoh"; });
  row("nothing_selective",
      [](auto& o) { o.mixer.selective_B = o.mixer.selective_C = false, o.mixer.dt_rank = "none"; });
  row("layer_norm_biases_untied", [](auto& o) {
    o.norm = "layer", o.tie_embeddings = false;
    o.mixer.bias = true;
  });
  row("inner_norm", [](auto& o) { o.mixer.inner_norm = "rms"; });
  return rows;
}

class Devices : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override { ADDER_NEEDS_CUDA(); }
  // Two models with the same weights.
  static std::pair<models::MambaLM, models::MambaLM> pair_of(const models::MambaLMOptions& options) {
    torch::manual_seed(1);
    models::MambaLM cpu(options);
    torch::manual_seed(1);
    models::MambaLM gpu(options);
    gpu->to(torch::kCUDA);
    return {cpu, gpu};
  }
};
INSTANTIATE_TEST_SUITE_P(Variants, Devices, testing::ValuesIn(variants()),
                         [](const auto& test) { return test.param.name; });

TEST_P(Devices, LossStateAndGradientsAgree) {
  auto [cpu, gpu] = pair_of(GetParam().options);
  const torch::Tensor ids = torch::randint(61, {3, 90}, torch::kLong);
  const auto run = [&](models::MambaLM& model) {
    const torch::Tensor there = ids.to(model->device());
    const auto first = model->loss(there.slice(1, 0, 33), there.slice(1, 1, 34));
    const auto second = model->loss(there.slice(1, 33, 89), there.slice(1, 34, 90), first.state);
    (first.mean + second.mean).backward();
    return std::pair(second.mean.detach(), second.state.layers[1].ssm.detach());
  };
  const auto expected = run(cpu), got = run(gpu);
  expect_near("loss", got.first.cpu(), expected.first, {1e-5, 1e-5});
  expect_near("state", as_real(got.second.cpu()), as_real(expected.second), {1e-4, 1e-4});
  const auto parameters = gpu->named_parameters();
  for (const auto& p : cpu->named_parameters())
    expect_near(p.key(), parameters[p.key()].grad().cpu(), p.value().grad(), {1e-3, 1e-4});
}

TEST_P(Devices, GreedyTokensAreTheSame) {
  auto [cpu, gpu] = pair_of(GetParam().options);
  infer::GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = 40;
  const std::vector<std::vector<int64_t>> prompts = {{1, 2, 3}, {5}, {7, 8, 9, 10, 11, 12, 13, 60}};
  const infer::Generation expected = infer::generate(cpu, prompts, options),
                          got = infer::generate(gpu, prompts, options);
  for (size_t row = 0; row < prompts.size(); ++row) EXPECT_EQ(got.rows[row].tokens, expected.rows[row].tokens) << row;
}

}  // namespace
}  // namespace adder::tests
