#pragma once

#include <torch/torch.h>

#include <optional>
#include <tuple>

#include "adder/ops/add_norm.h"
#include "adder/ops/causal_conv1d.h"
#include "adder/ops/linear_cross_entropy.h"
#include "adder/ops/selective_scan.h"
#include "adder/ops/small_linear.h"
#include "adder/ops/transposed.h"
#include "tests/device.h"

// The operators as the tests call them: with tensors on the CPU, which go to the device of the test at hand and come
// back, gradients too.
namespace adder::tests::here {

inline at::Tensor there(const at::Tensor& t) {
  return t.defined() && t.is_cpu() && current_device() == Device::kCuda ? t.to(at::kCUDA) : t;
}
inline std::optional<at::Tensor> there(const std::optional<at::Tensor>& t) {
  return t.has_value() ? std::optional(there(*t)) : t;
}
inline at::Tensor back(const at::Tensor& t) {
  return t.is_cuda() ? t.cpu() : t;
}
template <typename... Tensors>
std::tuple<Tensors...> back(const std::tuple<Tensors...>& tensors) {
  return std::apply([](const auto&... t) { return std::tuple(back(t)...); }, tensors);
}

inline std::tuple<at::Tensor, at::Tensor> selective_scan(const at::Tensor& u, const at::Tensor& delta,
                                                         const at::Tensor& A, const at::Tensor& B, const at::Tensor& C,
                                                         const ops::SelectiveScanOptions& options = {}) {
  ops::SelectiveScanOptions o = options;
  o.D = there(o.D);
  o.z = there(o.z);
  o.delta_bias = there(o.delta_bias);
  o.initial_state = there(o.initial_state);
  o.mask = there(o.mask);
  return back(ops::selective_scan(there(u), there(delta), there(A), there(B), there(C), o));
}

inline std::tuple<at::Tensor, at::Tensor> causal_conv1d(const at::Tensor& x, const at::Tensor& weight,
                                                        const std::optional<at::Tensor>& bias = {},
                                                        const ops::CausalConv1dOptions& options = {}) {
  ops::CausalConv1dOptions o = options;
  o.initial_window = there(o.initial_window);
  o.mask = there(o.mask);
  return back(ops::causal_conv1d(there(x), there(weight), there(bias), o));
}

inline std::tuple<at::Tensor, at::Tensor> add_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                                   const at::Tensor& weight, const std::optional<at::Tensor>& bias = {},
                                                   const ops::AddNormOptions& options = {}) {
  return back(ops::add_norm(there(x), there(residual), there(weight), there(bias), options));
}

inline std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x,
                                                                           const at::Tensor& weight,
                                                                           const at::Tensor& target,
                                                                           int64_t ignore_index = -100,
                                                                           int64_t vocab = -1) {
  return back(ops::linear_cross_entropy(there(x), there(weight), there(target), ignore_index, vocab));
}

inline at::Tensor small_linear(const at::Tensor& x, const at::Tensor& weight,
                               const std::optional<at::Tensor>& bias = {}) {
  return back(ops::small_linear(there(x), there(weight), there(bias)));
}

inline at::Tensor transposed(const at::Tensor& x) {
  return back(ops::transposed(there(x)));
}

}  // namespace adder::tests::here
