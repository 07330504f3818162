#pragma once

#include <functional>
#include <string>
#include <vector>

#include "adder/ops/causal_conv1d.h"
#include "tests/ops/compare.h"

namespace adder::tests {

// One problem: its arguments, and the gradients that come in.
struct ConvArguments {
  at::Tensor x, weight, bias;  // bias may be undefined
  ops::CausalConv1dOptions options;
  at::Tensor dy, dwindow;
};

struct ConvCase {
  int64_t batch = 2, length = 17, channels = 5, width = 4;
  bool silu = true, bias = true, window = true, mask = false, reverse = false;
  std::vector<int64_t> cu_seqlens = {};
  at::ScalarType type = at::kDouble;
};

inline ConvArguments make_arguments(const ConvCase& row) {
  torch::manual_seed(3);
  ConvArguments p;
  const at::ScalarType real = row.type == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t sequences = row.cu_seqlens.empty() ? row.batch : static_cast<int64_t>(row.cu_seqlens.size()) - 1;
  const auto draw = [](at::IntArrayRef sizes, at::ScalarType type) {
    return torch::randn(sizes, at::kDouble).to(type);
  };
  p.x = draw({row.batch, row.length, row.channels}, row.type);
  p.weight = draw({row.channels, row.width}, real);
  if (row.bias) p.bias = draw({row.channels}, real);
  p.options.activation = row.silu ? "silu" : "none";
  if (row.window) p.options.initial_window = draw({sequences, row.width - 1, row.channels}, real);
  if (row.mask) p.options.mask = torch::rand({row.batch, row.length}) < 0.7;
  if (!row.cu_seqlens.empty()) p.options.cu_seqlens = torch::tensor(row.cu_seqlens, at::kLong);
  p.options.reverse = row.reverse;
  p.dy = draw({row.batch, row.length, row.channels}, row.type);
  p.dwindow = draw({sequences, row.width - 1, row.channels}, real);
  return p;
}

inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

struct ConvResults {
  at::Tensor y, final_window, dx, dweight, dbias, dinitial_window;
};

template <typename Op>
ConvResults run(const Op& op, ConvArguments p) {
  std::vector<at::Tensor> inputs;
  const auto leaf = [&](at::Tensor& t) {
    t = t.detach().clone().requires_grad_();
    inputs.push_back(t);
  };
  leaf(p.x);
  leaf(p.weight);
  if (p.bias.defined()) leaf(p.bias);
  if (p.options.initial_window) leaf(*p.options.initial_window);
  const auto [y, window] = op(p.x, p.weight, optional(p.bias), p.options);
  auto grads = torch::autograd::grad({y, window}, inputs, {p.dy, p.dwindow}, {}, false, true);
  for (size_t i = 0; i < grads.size(); ++i)
    if (!grads[i].defined()) grads[i] = torch::zeros_like(inputs[i]);
  ConvResults r{y.detach(), window.detach(), grads[0], grads[1], {}, {}};
  size_t next = 2;
  if (p.bias.defined()) r.dbias = grads[next++];
  if (p.options.initial_window) r.dinitial_window = grads[next++];
  return r;
}

inline void expect_close(const char* what, const at::Tensor& got, const at::Tensor& expected, Tolerance tolerance) {
  ASSERT_EQ(got.defined(), expected.defined()) << what;
  if (!got.defined()) return;
  EXPECT_EQ(got.scalar_type(), expected.scalar_type()) << what;
  expect_near(what, got, expected, tolerance);
}

inline void expect_close(const ConvResults& got, const ConvResults& expected, Tolerance forward, Tolerance backward) {
  expect_close("y", got.y, expected.y, forward);
  expect_close("final_window", got.final_window, expected.final_window, forward);
  expect_close("dx", got.dx, expected.dx, backward);
  expect_close("dweight", got.dweight, expected.dweight, backward);
  expect_close("dbias", got.dbias, expected.dbias, backward);
  expect_close("dinitial_window", got.dinitial_window, expected.dinitial_window, backward);
}

inline void expect_equal(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_TRUE(torch::equal(a, b)) << a << "\n" << b;
}

}  // namespace adder::tests
