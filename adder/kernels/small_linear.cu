#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/small_linear_cuda.h"

namespace adder::kernels::cuda {
namespace {

// A warp's lanes share one output: W's row is read once for up to 8 rows of x. The order of a row's sum does not depend
// on the other rows.
template <typename X, typename W, int kVector>
__global__ void __launch_bounds__(128) rows_times_weight(const SmallLinear<X, W> p) {
  using R = Accumulator<X>;
  constexpr int kRows = kSmallLinearRows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  const int64_t groups = (p.rows + kRows - 1) / kRows;
  for (int64_t task = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32; task < p.out * groups;
       task += warps) {
    const int64_t o = task % p.out, first = task / p.out * kRows;
    const int rows = static_cast<int>(min(p.rows - first, static_cast<int64_t>(kRows)));
    R sum[kRows] = {};
    for (int64_t i = lane * kVector; i < p.in; i += 32 * kVector) {
      const auto w = *reinterpret_cast<const Vector<W, kVector>*>(p.weight + o * p.in + i);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const auto x = *reinterpret_cast<const Vector<X, kVector>*>(p.x + (first + r) * p.in + i);
#pragma unroll
        for (int k = 0; k < kVector; ++k) sum[r] += widen(w.value[k]) * widen(x.value[k]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const R y = sum_lanes(sum[r], 32) + (p.bias != nullptr ? p.bias[o] : R(0));
      if (lane == 0) p.y[(first + r) * p.out + o] = narrow<X>(y);
    }
  }
}

}  // namespace

template <typename X, typename W>
void small_linear(const SmallLinear<X, W>& p, CudaStream stream) {
  const int64_t tasks = p.out * ((p.rows + kSmallLinearRows - 1) / kSmallLinearRows);
  if (tasks == 0) return;
  constexpr int kVector = 16 / static_cast<int>(sizeof(X));
  const bool vectors = p.in % kVector == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(p.weight) % (kVector * sizeof(W)) == 0;
  if (vectors)
    rows_times_weight<X, W, kVector><<<grid_for(tasks, 4), 128, 0, stream>>>(p);
  else
    rows_times_weight<X, W, 1><<<grid_for(tasks, 4), 128, 0, stream>>>(p);
  check_launch("small_linear");
}

#define ADDER_INSTANTIATE(X, W) template void small_linear(const SmallLinear<X, W>&, CudaStream);
ADDER_INSTANTIATE(float, float)
ADDER_INSTANTIATE(float, bfloat16)
ADDER_INSTANTIATE(float, float16)
ADDER_INSTANTIATE(bfloat16, bfloat16)
ADDER_INSTANTIATE(float16, float16)
ADDER_INSTANTIATE(double, double)

}  // namespace adder::kernels::cuda
