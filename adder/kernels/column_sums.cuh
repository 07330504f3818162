#pragma once

#include "adder/kernels/cuda_launch.cuh"

namespace adder::kernels::cuda {

// take(i, sum over k of parts[k, i]) for the `size` columns of (count, size) parts, added in double and in an order
// that the shape fixes.
template <typename R, typename Take>
__global__ void __launch_bounds__(512) column_sums(const R* parts, int64_t count, int64_t size, Take take) {
  __shared__ double shared[512];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int columns = static_cast<int>(blockDim.x), rows = static_cast<int>(blockDim.y);
  for (int64_t first = blockIdx.x * int64_t{columns}; first < size; first += gridDim.x * int64_t{columns}) {
    double sum = 0;
    if (first + x < size)
#pragma unroll 8
      for (int64_t k = y; k < count; k += rows) sum += parts[k * size + first + x];
    shared[y * columns + x] = sum;
    __syncthreads();
    if (y == 0 && first + x < size) {
      for (int k = 1; k < rows; ++k) sum += shared[k * columns + x];
      take(first + x, sum);
    }
    __syncthreads();
  }
}

template <typename R, typename Take>
void sum_columns(const R* parts, int64_t count, int64_t size, const Take& take, const char* what, CudaStream stream) {
  if (size == 0) return;
  // Few columns of many parts: more threads add one column.
  const int columns = size < 2048 && count > 256 ? 8 : 32;
  column_sums<<<grid_for(size, columns), dim3(columns, 512 / columns), 0, stream>>>(parts, count, size, take);
  check_launch(what);
}

// Writes a sum as an R.
template <typename R>
struct StoreSum {
  R* out;
  __device__ void operator()(int64_t i, double sum) const { out[i] = static_cast<R>(sum); }
};

}  // namespace adder::kernels::cuda
