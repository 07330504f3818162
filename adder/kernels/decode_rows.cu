#include "adder/kernels/decode_rows.h"

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <typename W>
__global__ void __launch_bounds__(kThreads) convolve(const ConvRows<W> p) {
  const int64_t last = p.width - 1;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < p.rows * p.channels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / p.channels, d = i % p.channels;
    float* const window = p.window + row * last * p.channels + d;
    const float* const weight = p.weight + d * p.width;
    const float newest = widen(p.x[row * p.x_stride + d]);
    float sum = p.bias != nullptr ? p.bias[d] : 0.0f;
    for (int64_t k = 0; k < last; ++k) {
      const float x = window[k * p.channels];
      sum = fmaf(weight[k], x, sum);
      if (k > 0) window[(k - 1) * p.channels] = x;
    }
    if (last > 0) window[(last - 1) * p.channels] = newest;
    sum = fmaf(weight[last], newest, sum);
    p.u[i] = narrow<W>(sum * sigmoid_fast(sum));
  }
}

// Four lanes share a channel of a row.
template <typename W, int kStates>
__global__ void __launch_bounds__(kThreads) advance(const StateRows<W> p) {
  constexpr int kEach = kStates / 4;
  const int64_t items = p.rows * p.channels * 4;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < (items + 31) / 32 * 32;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    // Lanes behind the last one do its work again, and keep it to themselves.
    const bool is_item = i < items;
    const int64_t item = is_item ? i : items - 4 + i % 4, at = item / 4, row = at / p.channels, d = at % p.channels;
    const int quarter = static_cast<int>(item % 4) * kEach;
    float state[kEach], A[kEach];
    load_floats(state, p.state + at * kStates + quarter);
    load_floats(A, p.A + d * kStates + quarter);
    const float u = widen(p.u[at]), z = widen(p.z[row * p.z_stride + d]);
    const float delta = softplus_fast(widen(p.delta[at]) + p.delta_bias[d]), du = delta * u;
    const W *const B = p.B + row * p.B_stride + quarter, *const C = p.C + row * p.C_stride + quarter;
    float y = 0;
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      state[n] = fmaf(exp2_fast(delta * kLog2E * A[n]), state[n], du * widen(B[n]));
      y = fmaf(widen(C[n]), state[n], y);
    }
    y = fmaf(p.D[d], u, sum_lanes(y, 4)) * z * sigmoid_fast(z);
    if (!is_item) continue;
    store_floats(p.state + at * kStates + quarter, state);
    if (quarter == 0) p.y[at] = narrow<W>(y);
  }
}

}  // namespace

template <typename W>
void conv_rows(const ConvRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  convolve<<<grid_for(p.rows * p.channels, kThreads), kThreads, 0, stream>>>(p);
  check_launch("conv_rows");
}

template <typename W>
void state_rows(const StateRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  const auto kernel = p.states == 8    ? advance<W, 8>
                      : p.states == 16 ? advance<W, 16>
                      : p.states == 32 ? advance<W, 32>
                                       : advance<W, 64>;
  kernel<<<grid_for(p.rows * p.channels * 4, kThreads), kThreads, 0, stream>>>(p);
  check_launch("state_rows");
}

#define ADDER_INSTANTIATE(W)                               \
  template void conv_rows(const ConvRows<W>&, CudaStream); \
  template void state_rows(const StateRows<W>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)

}  // namespace adder::kernels::cuda
