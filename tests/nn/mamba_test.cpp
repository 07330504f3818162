#include "adder/nn/mamba.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/core/error.h"
#include "adder/ops/selective_scan.h"

namespace adder::tests {
namespace {

using nn::Mamba;
using nn::MambaOptions;
using torch::Tensor;

Tensor parameter(Mamba& block, const std::string& name) {
  return block->named_parameters()[name];
}

TEST(MambaParameters, HaveThePublishedNamesAndShapes) {
  Mamba block(64, MambaOptions());
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const auto& p : block->named_parameters()) shapes[p.key()] = p.value().sizes().vec();
  const std::map<std::string, std::vector<int64_t>> expected = {
      {"in_proj.weight", {256, 64}}, {"conv1d.weight", {128, 1, 4}},
      {"conv1d.bias", {128}},        {"x_proj.weight", {36, 128}},
      {"dt_proj.weight", {128, 4}},  {"dt_proj.bias", {128}},
      {"A_log", {128, 16}},          {"D", {128}},
      {"out_proj.weight", {64, 128}}};
  EXPECT_EQ(shapes, expected);
}

TEST(MambaInitialisation, StepSizesAreLogUniform) {
  torch::manual_seed(1);
  Mamba block(1024, MambaOptions());
  const Tensor dt = torch::softplus(parameter(block, "dt_proj.bias"));
  EXPECT_GE(dt.min().item<double>(), 1e-3 * 0.999);
  EXPECT_LE(dt.max().item<double>(), 0.1 * 1.001);
  // Half of them lie below the geometric mean of the bounds, 0.01 (2,048 channels: 5 standard deviations are 0.055).
  EXPECT_NEAR((dt < 0.01).to(torch::kFloat).mean().item<double>(), 0.5, 0.055);
}

TEST(MambaInitialisation, StepSizesKeepTheirFloor) {
  MambaOptions options;
  options.dt_min = 1e-6;
  options.dt_init_floor = 1e-4;
  Mamba block(64, options);
  EXPECT_GE(torch::softplus(parameter(block, "dt_proj.bias")).min().item<double>(), 0.999e-4);
}

TEST(MambaInitialisation, DecayIsS4DReal) {
  Mamba block(16, MambaOptions());
  const Tensor A = -parameter(block, "A_log").exp();
  EXPECT_TRUE(torch::allclose(A[0], -torch::arange(1, 17, torch::kFloat)));
  EXPECT_TRUE(torch::equal(A[0], A[31]));
  EXPECT_TRUE(torch::equal(parameter(block, "D"), torch::ones({32})));
}

TEST(MambaInitialisation, ComplexS4DLin) {
  MambaOptions options;
  options.complex = true;
  options.A_init = "s4d-lin";
  Mamba block(16, options);
  EXPECT_TRUE(torch::allclose(-parameter(block, "A_log").exp(), torch::full({32, 16}, -0.5f)));
  EXPECT_TRUE(torch::equal(parameter(block, "A_imag")[3], torch::arange(0, 16, torch::kFloat)));
}

TEST(MambaInitialisation, RandomDecayIsLogNormal) {
  torch::manual_seed(2);
  MambaOptions options;
  options.A_init = "random";
  Mamba block(256, options);
  const Tensor log_decay = parameter(block, "A_log");
  EXPECT_NEAR(log_decay.mean().item<double>(), 0, 0.06);
  EXPECT_NEAR(log_decay.std().item<double>(), 1, 0.05);
}

TEST(MambaInitialisation, OutputProjectionShrinksWithDepth) {
  for (const int64_t layers : {1, 16}) {
    torch::manual_seed(3);
    Mamba block(64, MambaOptions(), layers);
    const double bound = 1 / std::sqrt(128.0) / std::sqrt(static_cast<double>(layers));
    const double largest = parameter(block, "out_proj.weight").abs().max().item<double>();
    EXPECT_LE(largest, bound);
    EXPECT_GE(largest, 0.99 * bound);
  }
}

TEST(MambaInitialisation, DeltaProjection) {
  MambaOptions options;
  options.dt_init = "constant";
  options.dt_scale = 2;
  Mamba constant(64, options);
  EXPECT_TRUE(torch::equal(parameter(constant, "dt_proj.weight"), torch::full({128, 4}, 1.0f)));  // 2 * 4^-1/2
  Mamba random(1024, MambaOptions());
  EXPECT_LE(parameter(random, "dt_proj.weight").abs().max().item<double>(), 0.125);  // 64^-1/2
}

// Every choice of the paper runs, has finite gradients for every parameter, and continues from its state.
class MambaChoices : public testing::TestWithParam<std::pair<std::string, MambaOptions>> {};

std::vector<std::pair<std::string, MambaOptions>> choices() {
  std::vector<std::pair<std::string, MambaOptions>> rows{{"base", {}}};
  const auto row = [&](const std::string& name, auto change) {
    MambaOptions o;
    change(o);
    rows.emplace_back(name, o);
  };
  row("width1", [](auto& o) { o.d_conv = 1; });
  row("width7", [](auto& o) { o.d_conv = 7; });
  row("state1", [](auto& o) { o.d_state = 1; });
  row("expand3", [](auto& o) { o.expand = 3; });
  row("rank1", [](auto& o) { o.dt_rank = "1"; });
  row("constant_delta", [](auto& o) { o.dt_rank = "none"; });
  row("constant_B", [](auto& o) { o.selective_B = false; });
  row("constant_C", [](auto& o) { o.selective_C = false; });
  row("nothing_selective", [](auto& o) {
    o.dt_rank = "none";
    o.selective_B = o.selective_C = false;
  });
  row("nothing_selective_complex", [](auto& o) {
    o.dt_rank = "none";
    o.selective_B = o.selective_C = false;
    o.complex = true;
    o.A_init = "s4d-lin";
  });
  row("complex", [](auto& o) {
    o.complex = true;
    o.A_init = "s4d-lin";
  });
  row("complex_random", [](auto& o) {
    o.complex = true;
    o.A_init = "random";
  });
  row("real_half", [](auto& o) { o.A_init = "s4d-lin"; });
  row("zoh", [](auto& o) { o.discretization = "zoh"; });
  row("no_conv_bias", [](auto& o) { o.conv_bias = false; });
  row("biases", [](auto& o) { o.bias = true; });
  row("inner_norm", [](auto& o) { o.inner_norm = "rms"; });
  return rows;
}

TEST_P(MambaChoices, RunsInPiecesAsInWhole) {
  torch::manual_seed(4);
  Mamba block(24, GetParam().second);
  const Tensor x = torch::randn({2, 21, 24}), weight = torch::randn({2, 21, 24});
  const auto gradients = [&](const Tensor& y) {
    std::vector<Tensor> parameters;
    for (const auto& p : block->named_parameters()) parameters.push_back(p.value());
    return torch::autograd::grad({(y * weight).sum()}, parameters);
  };
  const auto [whole, final_state] = block->forward(x);
  const auto expected = gradients(whole);
  for (const Tensor& g : expected) {
    EXPECT_TRUE(torch::isfinite(g).all().item<bool>());
    EXPECT_GT(g.abs().max().item<double>(), 0);
  }
  nn::MambaState state;
  std::vector<Tensor> pieces;
  int64_t at = 0;
  for (const int64_t length : {0, 1, 2, 3, 1, 0, 9, 5}) {
    auto [y, after] = block->forward(x.narrow(1, at, length), state);
    pieces.push_back(y);
    state = after;
    at += length;
  }
  ASSERT_EQ(at, 21);
  const Tensor joined = torch::cat(pieces, 1);
  EXPECT_TRUE(torch::allclose(joined, whole, 1e-5, 1e-5));
  EXPECT_TRUE(torch::allclose(state.conv, final_state.conv, 1e-5, 1e-5));
  EXPECT_TRUE(torch::allclose(state.ssm, final_state.ssm, 1e-5, 1e-5));
  EXPECT_GT(final_state.ssm.abs().max().item<double>(), 1e-3);
  const auto got = gradients(joined);
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LT((got[i] - expected[i]).abs().max().item<double>(), 1e-4 * (1 + expected[i].abs().max().item<double>()));
}

INSTANTIATE_TEST_SUITE_P(Choices, MambaChoices, testing::ValuesIn(choices()),
                         [](const auto& test) { return test.param.first; });

// Theorem 1: N = 1, A = -1, B = 1, zero-order hold is the gated RNN h = (1 - g) h + g x with g = sigmoid(s).
TEST(Theorem1, ZeroOrderHoldIsTheGatedRnn) {
  torch::manual_seed(5);
  const auto double_type = torch::kDouble;
  const Tensor x = torch::randn({2, 40, 3}, double_type), s = 3 * torch::randn({2, 40, 3}, double_type);
  const Tensor one = torch::ones({3, 1}, double_type);
  ops::SelectiveScanOptions options;
  options.delta_softplus = true;
  options.discretization = "zoh";
  const Tensor y = std::get<0>(ops::selective_scan(x, s, -one, one, one, options));
  Tensor h = torch::zeros({2, 3}, double_type);
  for (int64_t t = 0; t < 40; ++t) {
    const Tensor g = torch::sigmoid(s.select(1, t));
    h = (1 - g) * h + g * x.select(1, t);
    EXPECT_LT((y.select(1, t) - h).abs().max().item<double>(), 1e-14) << t;
  }
}

TEST(Theorem1, SmallStepsHoldTheStateAndLargeOnesResetIt) {
  const Tensor one = torch::ones({1, 1}), x = torch::full({1, 1, 1}, 7.0f), h0 = torch::full({1, 1, 1}, 3.0f);
  ops::SelectiveScanOptions options;
  options.discretization = "zoh";
  options.initial_state = h0;
  const auto after = [&](float delta) {
    return std::get<1>(ops::selective_scan(x, torch::full({1, 1, 1}, delta), -one, one, one, options)).item<float>();
  };
  EXPECT_EQ(after(0), 3.0f);
  EXPECT_NEAR(after(1e-6f), 3.0f, 1e-5f);
  EXPECT_EQ(after(1e4f), 7.0f);
}

TEST(MambaInference, FollowsItsParameters) {
  torch::manual_seed(5);
  Mamba block(8, MambaOptions());
  const Tensor x = torch::randn({1, 6, 8});
  const auto without_gradient = [&] {
    const torch::NoGradGuard no_grad;
    return block->forward(x).first;
  };
  const auto expect_current = [&](const char* after) {
    EXPECT_TRUE(torch::allclose(without_gradient(), block->forward(x).first.detach(), 1e-5, 1e-7)) << after;
  };
  const Tensor before = without_gradient();
  {
    const torch::NoGradGuard no_grad;
    parameter(block, "A_log").add_(1);
  }
  EXPECT_FALSE(torch::allclose(without_gradient(), before, 1e-3));
  expect_current("a write");
  parameter(block, "A_log").set_data(parameter(block, "A_log").detach() * 0.5);
  expect_current("new data");
}

TEST(MambaErrors, NameTheRule) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  MambaOptions options;
  options.dt_rank = "lots";
  EXPECT_THAT(
      [&] { Mamba(8, options); },
      ThrowsMessage<Error>(HasSubstr("dt_rank must be \"auto\", \"none\" or a whole number >= 1, got \"lots\"")));
  Mamba block(8, MambaOptions());
  EXPECT_THAT([&] { block->forward(torch::zeros({2, 3, 9})); },
              ThrowsMessage<Error>(HasSubstr("x must have shape (B, L, d_model) with d_model = 8, got (2, 3, 9)")));
}

TEST(MambaForward, BrokenOffsetsAreRefusedInEveryMode) {
  Mamba block(8, MambaOptions());
  const Tensor x = torch::randn({1, 10, 8});
  for (const bool gradient : {true, false})
    for (const bool independent : {true, false}) {
      const torch::AutoGradMode mode(gradient);
      const auto message = [&](const Tensor& offsets) {
        try {
          block->forward(x, {}, {.cu_seqlens = offsets, .independent = independent});
        } catch (const c10::ValueError& error) {
          return std::string(error.what_without_backtrace());
        }
        return std::string("no error");
      };
      EXPECT_EQ(message(torch::tensor({0, 3, 10}, torch::kLong)), "no error");
      EXPECT_THAT(message(torch::tensor({0, 3, 7}, torch::kLong)), testing::HasSubstr("L = 10"));
      EXPECT_THAT(message(torch::tensor({0, 7, 3, 10}, torch::kLong)), testing::HasSubstr("cu_seqlens"));
      EXPECT_THAT(message(torch::tensor({0, 10}, torch::kInt)), testing::HasSubstr("cu_seqlens must have dtype"));
    }
}

}  // namespace
}  // namespace adder::tests
