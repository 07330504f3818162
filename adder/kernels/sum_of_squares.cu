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

// As many tensors as a kernel's parameters hold.
constexpr int kTensors = 96;
template <typename T>
struct Tensors {
  SquaredValues<T> values[kTensors];
  int first[kTensors + 1];  // the first block of each
  int count;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) square_pieces(const __grid_constant__ Tensors<T> tensors, double* parts) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = tensors.count;  // first[low] <= block < first[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tensors.first[middle] <= block ? low : high) = middle;
  }
  const T* const x = tensors.values[low].data;
  const int64_t count = tensors.values[low].count;
  const int64_t step = static_cast<int64_t>(tensors.first[low + 1] - tensors.first[low]) * kThreads;
  double sum = 0;
  for (int64_t i = (block - tensors.first[low]) * static_cast<int64_t>(kThreads) + threadIdx.x; i < count; i += step) {
    const double value = x[i];
    sum += value * value;
  }
  sum = sum_block(sum);
  if (threadIdx.x == 0) parts[block] = sum;
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
void sum_of_squares(const SquaredValues<T>* tensors, int64_t tensor_count, double* parts, CudaStream stream) {
  for (int64_t done = 0; done < tensor_count; done += kTensors) {
    Tensors<T> some{};
    some.count = static_cast<int>(std::min<int64_t>(kTensors, tensor_count - done));
    for (int i = 0; i < some.count; ++i) {
      some.values[i] = tensors[done + i];
      some.first[i + 1] = some.first[i] + static_cast<int>(sum_of_squares_parts(some.values[i].count));
    }
    square_pieces<<<static_cast<unsigned>(some.first[some.count]), kThreads, 0, stream>>>(some, parts);
    check_launch("sum_of_squares");
    parts += some.first[some.count];
  }
}
template void sum_of_squares(const SquaredValues<float>*, int64_t, double*, CudaStream);
template void sum_of_squares(const SquaredValues<double>*, int64_t, double*, CudaStream);

void sum_of_squares_total(const double* parts, int64_t count, double* total, CudaStream stream) {
  add_parts<<<1, kThreads, 0, stream>>>(parts, count, total);
  check_launch("sum_of_squares");
}

}  // namespace adder::kernels::cuda
