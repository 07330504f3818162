#pragma once

#include "adder/kernels/cuda_launch.cuh"

namespace adder::kernels::cuda {

// take(i, sum over k of parts[k, i]) for the `size` columns of (count, size) parts, added in double and in an order
// that the shape fixes.
template <typename R, typename Take>
__global__ void __launch_bounds__(512) column_sums(const R* parts, int64_t count, int64_t size, Take take) {
  constexpr int kRows = 16;
  __shared__ double shared[kRows][33];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  for (int64_t first = blockIdx.x * int64_t{32}; first < size; first += gridDim.x * int64_t{32}) {
    double sum = 0;
    if (first + x < size)
      for (int64_t k = y; k < count; k += kRows) sum += parts[k * size + first + x];
    shared[y][x] = sum;
    __syncthreads();
    if (y == 0 && first + x < size) {
      for (int k = 1; k < kRows; ++k) sum += shared[k][x];
      take(first + x, sum);
    }
    __syncthreads();
  }
}

template <typename R, typename Take>
void sum_columns(const R* parts, int64_t count, int64_t size, const Take& take, const char* what, CudaStream stream) {
  if (size == 0) return;
  column_sums<<<grid_for(size, 32), dim3(32, 16), 0, stream>>>(parts, count, size, take);
  check_launch(what);
}

// Writes a sum as an R.
template <typename R>
struct StoreSum {
  R* out;
  __device__ void operator()(int64_t i, double sum) const { out[i] = static_cast<R>(sum); }
};

}  // namespace adder::kernels::cuda
