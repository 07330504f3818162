#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace adder::ops {

// What causal_conv1d() takes besides its tensors.
struct CausalConv1dOptions {
  std::string activation = "none";                // "none" or "silu"
  std::optional<at::Tensor> initial_window = {};  // (S, K - 1, D): the rows before each sequence, oldest first
  std::optional<at::Tensor> mask = {};            // (B, L) bool; a step that is false is left out and gives 0
  std::optional<at::Tensor> cu_seqlens = {};      // (S + 1) int64 on the CPU, B = 1: packed sequences
  bool reverse = false;                           // time runs from the last step to the first
};

// The causal depthwise convolution y_t = act(bias + sum_k weight_k x_(t - K + 1 + k)); formula, gradient and shapes:
// docs/ops/causal_conv1d.md.
//  - x (B, L, D), of any strides
//  - weight (D, K); bias (D) or none
//
// weight, bias and windows are float32, or float64 where x is float64. Returns y (B, L, D) in x's type and the final
// window (S, K - 1, D), the last K - 1 rows of [initial window; x]; S = B, or the number of packed sequences. y lies
// in memory as x does, with channels or with steps side by side (step_layout.h), and so does dx. Raises ValueError on
// bad arguments.
std::tuple<at::Tensor, at::Tensor> causal_conv1d(const at::Tensor& x, const at::Tensor& weight,
                                                 const std::optional<at::Tensor>& bias = {},
                                                 const CausalConv1dOptions& options = {});

// The same from plain torch operations, differentiable any number of times.
std::tuple<at::Tensor, at::Tensor> causal_conv1d_composite(const at::Tensor& x, const at::Tensor& weight,
                                                           const std::optional<at::Tensor>& bias = {},
                                                           const CausalConv1dOptions& options = {});

}  // namespace adder::ops
