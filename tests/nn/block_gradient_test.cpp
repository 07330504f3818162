#include <torch/torch.h>

#include "adder/nn/block.h"
#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using torch::Tensor;

constexpr int64_t kBatch = 2, kLength = 7, kWidth = 10;

struct Case {
  std::string name;
  nn::MambaOptions options;
  std::string norm = "rms";
};

std::vector<Case> cases() {
  std::vector<Case> rows;
  for (const bool conv_bias : {false, true})
    for (const bool bias : {false, true})
      for (const std::string inner_norm : {"none", "rms"}) {
        Case c;
        c.name = std::string(conv_bias ? "conv_bias_" : "") + (bias ? "biases_" : "") + "inner_norm_" + inner_norm;
        c.options.conv_bias = conv_bias;
        c.options.bias = bias;
        c.options.inner_norm = inner_norm;
        c.norm = bias ? "layer" : "rms";
        rows.push_back(c);
      }
  const auto row = [&](const std::string& name, auto change) {
    Case c;
    c.name = name;
    change(c.options);
    rows.push_back(c);
  };
  row("zoh", [](auto& o) { o.discretization = "zoh"; });
  row("complex_zoh", [](auto& o) {
    o.complex = true;
    o.A_init = "s4d-lin";
    o.discretization = "zoh";
  });
  row("nothing_selective_complex", [](auto& o) {
    o.dt_rank = "none";
    o.selective_B = o.selective_C = false;
    o.complex = true;
    o.A_init = "random";
  });
  for (Case& c : rows) {
    c.options.d_state = 3;
    // The norm of a single number is its sign, which differences do not follow.
    if (c.options.dt_rank == "auto") c.options.dt_rank = "3";
  }
  return rows;
}

class BlockGradient : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Cases, BlockGradient, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// Norm, projections, convolution, scan and residual at once, in double, along random directions.
TEST_P(BlockGradient, EqualsFiniteDifferences) {
  const nn::MambaOptions& options = GetParam().options;
  torch::manual_seed(6);
  nn::Block block(kWidth, options, 1, GetParam().norm, 1e-5, 0);
  block->to(torch::kDouble);
  NamedTensors leaves;
  const auto leaf = [&](const std::string& name, const Tensor& t) {
    leaves.emplace_back(name, t.requires_grad_());
    return t;
  };
  const int64_t channels = options.expand * kWidth;
  const auto number = options.complex ? torch::kComplexDouble : torch::kDouble;
  const Tensor x = leaf("x", torch::randn({kBatch, kLength, kWidth}, torch::kDouble));
  const Tensor residual = leaf("residual", torch::randn({kBatch, kLength, kWidth}, torch::kDouble));
  const nn::MambaState state{leaf("conv", torch::randn({kBatch, options.d_conv - 1, channels}, torch::kDouble)),
                             leaf("ssm", torch::randn({kBatch, channels, options.d_state}, number))};
  for (const auto& p : block->named_parameters()) {
    const torch::NoGradGuard no_grad;
    p.value().add_(torch::randn_like(p.value()), 0.1);  // biases begin at 0, D and norms at 1, rows of A_log alike
    leaves.emplace_back(p.key(), p.value());
  }

  const auto real = [](const Tensor& t) { return t.is_complex() ? torch::view_as_real(t) : t; };
  const auto objective = [&] {
    const auto out = block->forward(x, residual, torch::kDouble, state);
    torch::manual_seed(7);
    Tensor sum = torch::zeros({}, torch::kDouble);
    for (const Tensor& t : {out.x, out.residual, out.state.conv, real(out.state.ssm)})
      sum = sum + (t * torch::randn(t.sizes(), torch::kDouble)).sum();
    return sum;
  };
  std::vector<Tensor> inputs;
  for (const auto& [name, tensor] : leaves) inputs.push_back(tensor);
  const auto gradients = torch::autograd::grad({objective()}, inputs);

  const torch::NoGradGuard no_grad;
  constexpr double kStep = 1e-5;
  std::vector<Tensor> directions;
  for (int i = 0; i < 3; ++i)
    for (size_t k = 0; k < leaves.size(); ++k) {
      const auto& [name, tensor] = leaves[k];
      const Tensor saved = tensor.clone(), direction = torch::randn_like(tensor);
      const auto moved = [&](double step) {
        tensor.copy_(saved + direction * step);
        return objective().item<double>();
      };
      const double difference = (moved(kStep) - moved(-kStep)) / (2 * kStep);
      tensor.copy_(saved);
      const double expected = (real(gradients[k]) * real(direction)).sum().item<double>();
      const double scale = (real(gradients[k]) * real(direction)).norm().item<double>();
      EXPECT_NEAR(difference, expected, 1e-7 * scale + 1e-9) << name;
      EXPECT_GT(scale, 1e-6) << name;
    }
}

}  // namespace
}  // namespace adder::tests
