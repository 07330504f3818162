#pragma once

#include <cstdint>

#include "adder/kernels/cuda_stream.h"

namespace adder::kernels::cuda {

// Values of one tensor on the device.
template <typename T>
struct SquaredValues {
  const T* data = nullptr;
  int64_t count = 0;
};

// How many partial sums a tensor of `count` values has.
int64_t sum_of_squares_parts(int64_t count);

// Sums of x[i]^2, each squared and added in double: one for each piece of each tensor, the tensors one after another.
template <typename T>
void sum_of_squares(const SquaredValues<T>* tensors, int64_t tensor_count, double* parts, CudaStream stream);

// total = the sum of the parts, in an order that their number fixes.
void sum_of_squares_total(const double* parts, int64_t count, double* total, CudaStream stream);

}  // namespace adder::kernels::cuda
