#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace adder::ops {

// What selective_scan() takes besides its tensors.
struct SelectiveScanOptions {
  std::optional<at::Tensor> D = {};              // (D) skip connection
  std::optional<at::Tensor> z = {};              // (B, L, D) gate: y * silu(z)
  std::optional<at::Tensor> delta_bias = {};     // (D)
  bool delta_softplus = false;                   // Delta = softplus(delta + delta_bias), otherwise delta + delta_bias
  std::string discretization = "euler";          // "euler": Bbar = delta B; "zoh": equation 4
  std::optional<at::Tensor> initial_state = {};  // (S, D, N)
  std::optional<at::Tensor> mask = {};           // (B, L) bool; a step that is false is skipped and gives 0
  std::optional<at::Tensor> cu_seqlens = {};     // (S + 1) int64 on the CPU, B = 1: packed sequences
  bool reverse = false;                          // time runs from the last step to the first
};

// The selective scan (arXiv 2312.00752, section 3.2, Algorithm 2; equations 2a and 2b); formula, gradient and shapes:
// docs/ops/selective_scan.md.
//  - u, delta (B, L, D) of one floating type, of any strides
//  - A (D, N), real or complex
//  - B, C per step (B, L, G, N) in u's type, complex A: (B, L, G, 2 N); or constant (D, N) in A's type
//
// A, D, delta_bias and states are float32 (complex64), or float64 (complex128) where u is float64.
// Returns y (B, L, D) and the final state (S, D, N); S = B, or the number of packed sequences. y lies in memory as u
// does, with channels or with steps side by side (step_layout.h), and so do gradients of inputs per step. Raises
// ValueError on bad arguments.
std::tuple<at::Tensor, at::Tensor> selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                                                  const at::Tensor& B, const at::Tensor& C,
                                                  const SelectiveScanOptions& options = {});

// The same from plain torch operations, differentiable any number of times; needs memory for (B, D, N) states of every
// step.
std::tuple<at::Tensor, at::Tensor> selective_scan_composite(const at::Tensor& u, const at::Tensor& delta,
                                                            const at::Tensor& A, const at::Tensor& B,
                                                            const at::Tensor& C,
                                                            const SelectiveScanOptions& options = {});

}  // namespace adder::ops
