#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>

namespace adder::ops {

// What add_norm() takes besides its tensors.
struct AddNormOptions {
  std::string kind = "rms";                      // "rms": x / sqrt(mean(x^2) + eps); "layer": the same of x - mean(x)
  double eps = 1e-5;                             // added to the mean square
  std::optional<at::ScalarType> out_dtype = {};  // of y; default: x's
};

// The residual add and the normalisation after it; formula, gradient and shapes: docs/ops/add_norm.md.
//  - x (..., D) of a floating type
//  - residual (..., D) float32 (float64 where x is float64), or none
//  - weight (D); bias (D) or none
//
// Returns y (..., D) and residual_out = x + residual in float32 (float64). Raises ValueError on bad arguments.
std::tuple<at::Tensor, at::Tensor> add_norm(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                            const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                            const AddNormOptions& options = {});

// The same from plain torch operations, differentiable any number of times.
std::tuple<at::Tensor, at::Tensor> add_norm_composite(const at::Tensor& x, const std::optional<at::Tensor>& residual,
                                                      const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                                      const AddNormOptions& options = {});

}  // namespace adder::ops
