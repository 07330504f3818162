#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/sum_of_squares_cuda.h"

namespace adder::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = 16384;  // values of a block, at least

__device__ double sum_block(double x) {
  __shared__ double shared[kThreads / 32];
  x = sum_lanes(x, 32);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared[w];
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) square_pieces(const T* x, int64_t count, double* parts) {
  double sum = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    const double value = x[i];
    sum += value * value;
  }
  sum = sum_block(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) add_parts(const double* parts, int64_t count, double* total) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  sum = sum_block(sum);
  if (threadIdx.x == 0) *total = sum;
}

}  // namespace

int64_t sum_of_squares_parts(int64_t count) {
  return std::clamp<int64_t>((count + kPiece - 1) / kPiece, 1, 1024);
}

template <typename T>
void sum_of_squares(const T* x, int64_t count, double* parts, CudaStream stream) {
  square_pieces<<<static_cast<unsigned>(sum_of_squares_parts(count)), kThreads, 0, stream>>>(x, count, parts);
  check_launch("sum_of_squares");
}
template void sum_of_squares(const float*, int64_t, double*, CudaStream);
template void sum_of_squares(const double*, int64_t, double*, CudaStream);

void sum_of_squares_total(const double* parts, int64_t count, double* total, CudaStream stream) {
  add_parts<<<1, kThreads, 0, stream>>>(parts, count, total);
  check_launch("sum_of_squares");
}

}  // namespace adder::kernels::cuda
