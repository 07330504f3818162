#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace adder::ops {

// y = x weight^T + bias, for few rows: each weight is read once for every 8 rows, and a row's result does not depend on
// the others. Formula, gradient and shapes: docs/ops/small_linear.md.
//  - x (..., I) float32, float64, bfloat16 or float16
//  - weight (O, I) in x's type, or bfloat16 or float16 where x is float32
//  - bias (O) of a floating type, or none
//
// Returns (..., O) in x's type; sums are float32 (float64). Raises ValueError on bad arguments.
at::Tensor small_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

// The same from plain torch operations, in the accumulator type.
at::Tensor small_linear_composite(const at::Tensor& x, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias = {});

// The linear layer's product, by the faster way: small_linear for up to 8 rows without gradient, else at::linear, with
// x rounded to weight's type where they differ. Returns (..., O) in x's type.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = {});

}  // namespace adder::ops
