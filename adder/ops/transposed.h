#pragma once

#include <ATen/core/Tensor.h>

namespace adder::ops {

// For tensors of other packages (adder.compat): a contiguous copy of x.transpose(1, 2), at the rate of a plain copy on
// a GPU: between channels that are neighbours, (B, L, D), as all operators here have them, and (B, D, L).
//   x (B, M, N) of a floating type, any strides. Returns (B, N, M). The gradient is the same copy of the gradient.
//   Raises ValueError on bad arguments.
at::Tensor transposed(const at::Tensor& x);

// Its checks, for all devices.
void check_transposed(const at::Tensor& x);

}  // namespace adder::ops
