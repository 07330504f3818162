#pragma once

#include <ATen/core/Tensor.h>

namespace adder::ops {

// The sum of the squares of all values of float32 and float64 tensors of one device, squared and added in double, as a
// float64 scalar there. Two runs give the same bits. An empty list gives 0 on the CPU.
at::Tensor sum_of_squares(at::TensorList tensors);

}  // namespace adder::ops
