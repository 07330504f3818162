#pragma once

#include <cstdint>

namespace adder::kernels::cpu {

// Sum of x[i]^2 over `count` values, each squared and added in double: no float32 value leaves the range.
// NaN and infinities stay. threads: 0 for OpenMP's own number; the bits of the result do not depend on it.
template <typename T>
double sum_of_squares(const T* x, int64_t count, int64_t threads = 0);

}  // namespace adder::kernels::cpu
