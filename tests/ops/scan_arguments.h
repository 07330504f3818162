#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "adder/ops/selective_scan.h"
#include "tests/ops/compare.h"

namespace adder::tests {

struct ScanCase {
  int64_t B = 2, L = 70, D = 20, N = 5, G = 1;
  bool complex = false, zoh = false, constant_B = false, constant_C = false;
  bool skip = true, gate = true, bias = true, softplus = true;
  bool initial = true, mask = false, reverse = false;
  std::vector<int64_t> cu_seqlens = {};  // not empty: packed, B = 1
  double delta_scale = 1;

  int64_t sequences() const { return cu_seqlens.empty() ? B : static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// The arguments of one scan.
struct ScanArguments {
  torch::Tensor u, delta, A, B, C;
  ops::SelectiveScanOptions options;

  // Calls visit(name, tensor) for each tensor that can have a gradient, absent ones left out.
  template <typename Visit>
  void each(const Visit& visit) {
    visit("u", u);
    visit("delta", delta);
    visit("A", A);
    visit("B", B);
    visit("C", C);
    const auto optional = [&](const char* name, std::optional<torch::Tensor>& t) {
      if (t.has_value()) visit(name, *t);
    };
    optional("D", options.D);
    optional("z", options.z);
    optional("delta_bias", options.delta_bias);
    optional("initial_state", options.initial_state);
  }
};

using Scan = decltype(&ops::selective_scan);

inline std::tuple<torch::Tensor, torch::Tensor> call(Scan scan, const ScanArguments& a) {
  return scan(a.u, a.delta, a.A, a.B, a.C, a.options);
}

// The same numbers in another floating point type of u; A, D, bias and states in what goes with it.
inline ScanArguments cast(ScanArguments a, torch::ScalarType type) {
  const auto real = type == torch::kDouble ? torch::kDouble : torch::kFloat;
  a.each([&](const std::string& name, torch::Tensor& t) {
    const bool step = name == "u" || name == "delta" || name == "z" || t.dim() == 4;
    t = t.detach().to(step ? type : t.is_complex() ? c10::toComplexType(real) : real);
  });
  return a;
}

// Random arguments in double whose values are numbers of the type `of`.
inline ScanArguments make_arguments(const ScanCase& s, torch::ScalarType of = torch::kFloat, uint64_t seed = 1) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto real = [&](torch::IntArrayRef shape) { return torch::randn(shape, generator, torch::kDouble); };
  const auto number = [&](torch::IntArrayRef shape) {
    return s.complex ? torch::complex(real(shape), real(shape)) : real(shape);
  };
  ScanArguments a;
  a.u = real({s.B, s.L, s.D});
  a.delta = real({s.B, s.L, s.D}) * s.delta_scale;
  if (!s.softplus) a.delta = a.delta.abs() / 4;
  a.A = -real({s.D, s.N}).abs() - 0.1;
  if (s.complex) a.A = torch::complex(a.A, real({s.D, s.N}));
  const int64_t values = s.complex ? 2 * s.N : s.N;
  a.B = s.constant_B ? number({s.D, s.N}) : real({s.B, s.L, s.G, values});
  a.C = s.constant_C ? number({s.D, s.N}) : real({s.B, s.L, s.G, values});
  if (s.skip) a.options.D = real({s.D});
  if (s.gate) a.options.z = real({s.B, s.L, s.D});
  if (s.bias) a.options.delta_bias = real({s.D}) / 2;
  a.options.delta_softplus = s.softplus;
  a.options.discretization = s.zoh ? "zoh" : "euler";
  if (s.initial) a.options.initial_state = number({s.sequences(), s.D, s.N});
  if (s.mask) a.options.mask = torch::rand({s.B, s.L}, generator) < 0.75;
  if (!s.cu_seqlens.empty()) a.options.cu_seqlens = torch::tensor(s.cu_seqlens, torch::kLong);
  a.options.reverse = s.reverse;
  return cast(cast(a, of), torch::kDouble);
}

enum class Through { kBoth, kOutput, kState };

// The gradients of `leaves` for random gradients of the outputs; what is not reached has zeros.
inline void append_gradients(NamedTensors& to, const torch::Tensor& y, const torch::Tensor& state,
                             const NamedTensors& leaves, Through through = Through::kBoth) {
  const at::Generator generator = at::detail::createCPUGenerator(2);
  // float32 values, whatever the type is in which they are asked for.
  const torch::Tensor dy = torch::randn(y.sizes(), generator, torch::kBFloat16).to(y.scalar_type());
  torch::Tensor dstate = torch::randn(state.sizes(), generator, torch::kFloat);
  if (state.is_complex()) dstate = torch::complex(dstate, torch::randn(state.sizes(), generator, torch::kFloat));
  dstate = dstate.to(state.scalar_type());
  torch::autograd::variable_list outputs, gradients, inputs;
  const auto add = [&](const torch::Tensor& output, const torch::Tensor& gradient) {
    if (!output.requires_grad()) return;  // the composite's, of no steps
    outputs.push_back(output);
    gradients.push_back(gradient);
  };
  if (through != Through::kState) add(y, dy);
  if (through != Through::kOutput) add(state, dstate);
  for (const auto& [name, leaf] : leaves) inputs.push_back(leaf);
  torch::autograd::variable_list grads(inputs.size());
  if (!outputs.empty())
    grads = torch::autograd::grad(outputs, inputs, gradients, /*retain_graph=*/std::nullopt, /*create_graph=*/false,
                                  /*allow_unused=*/true);
  for (size_t i = 0; i < grads.size(); ++i)
    to.emplace_back("d" + leaves[i].first, grads[i].defined() ? grads[i] : torch::zeros_like(inputs[i]));
}

inline NamedTensors make_leaves(ScanArguments& a) {
  NamedTensors leaves;
  a.each([&](const std::string& name, torch::Tensor& t) {
    t = t.detach().requires_grad_();
    leaves.emplace_back(name, t);
  });
  return leaves;
}

// y, final_state, and the gradient of every input.
inline NamedTensors run(Scan scan, ScanArguments a, Through through = Through::kBoth) {
  const NamedTensors leaves = make_leaves(a);
  const auto [y, state] = call(scan, a);
  NamedTensors result{{"y", y.detach()}, {"final_state", state.detach()}};
  append_gradients(result, y, state, leaves, through);
  return result;
}

inline void expect_near(const NamedTensors& got, const NamedTensors& expected, Tolerance forward, Tolerance backward) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].first, expected[i].first);
    expect_near(got[i].first, as_real(got[i].second), as_real(expected[i].second), i < 2 ? forward : backward);
  }
}

inline void expect_same_bits(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(same_bits(a[i].second, b[i].second)) << a[i].first;
}

}  // namespace adder::tests
