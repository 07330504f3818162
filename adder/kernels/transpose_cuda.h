#pragma once

#include <cstdint>

#include "adder/kernels/cuda_stream.h"

namespace adder::kernels::cuda {

// to[b, n, m] = from[b, m, n], for elements of 2, 4 or 8 bytes.
struct Transpose {
  int64_t batch = 0, rows = 0, columns = 0;  // B, M, N
  const void* from = nullptr;                // (B, M, N), columns side by side
  int64_t from_batch = 0, from_row = 0;      // strides, in elements
  void* to = nullptr;                        // (B, N, M) contiguous
  int element_size = 0;
};

void transpose(const Transpose& params, CudaStream stream);

}  // namespace adder::kernels::cuda
