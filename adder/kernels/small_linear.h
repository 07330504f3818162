#pragma once

#include <cstdint>

#include "adder/kernels/dtype.h"

// y = x W^T + bias for a few rows, bound by reading W once. A row's result depends on neither the other rows nor the
// threads.
namespace adder::kernels {

// Rows that share a pass over the weights. For many more than these a matrix product is faster.
inline constexpr int64_t kSmallLinearRows = 8;

template <typename X, typename W>
struct SmallLinear {
  using R = Accumulator<X>;
  int64_t rows = 0;           // M
  int64_t in = 0, out = 0;    // I, O
  const X* x = nullptr;       // (M, I) contiguous
  const W* weight = nullptr;  // (O, I) contiguous
  const R* bias = nullptr;    // (O) or null
  X* y = nullptr;             // (M, O) contiguous
  int64_t threads = 0;        // 0: OpenMP's own number
};

namespace cpu {
// (X, W): (float, float), (float, bfloat16), (float, float16), (bfloat16, bfloat16), (float16, float16) or (double,
// double).
template <typename X, typename W>
void small_linear(const SmallLinear<X, W>& params);
}  // namespace cpu

}  // namespace adder::kernels
