#include "adder/kernels/decode_rows.h"

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Blocks (x: channels, y: rows), so that no thread divides to find its place.
dim3 blocks_for(int64_t threads_a_row, int64_t rows) {
  constexpr int64_t kMostY = 65535;
  return {grid_for(threads_a_row, kThreads), static_cast<unsigned>(std::min(rows, kMostY)), 1};
}

template <typename W>
__global__ void __launch_bounds__(kThreads) convolve(const ConvRows<W> p) {
  const int64_t last = p.width - 1;
  for (int64_t d = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; d < p.channels;
       d += static_cast<int64_t>(gridDim.x) * kThreads) {
    const float* const weight = p.weight + d * p.width;
    const float bias = p.bias != nullptr ? p.bias[d] : 0.0f;
    for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
      float* const window = p.window + row * last * p.channels + d;
      const float newest = widen(p.x[row * p.x_stride + d]);
      float sum = bias;
      for (int64_t k = 0; k < last; ++k) {
        const float x = window[k * p.channels];
        sum = fmaf(weight[k], x, sum);
        if (k > 0) window[(k - 1) * p.channels] = x;
      }
      if (last > 0) window[(last - 1) * p.channels] = newest;
      sum = fmaf(weight[last], newest, sum);
      p.u[row * p.channels + d] = narrow<W>(sum * sigmoid_fast(sum));
    }
  }
}

// Four lanes share a channel of a row.
template <typename W, int kStates>
__global__ void __launch_bounds__(kThreads) advance(const StateRows<W> p) {
  constexpr int kEach = kStates / 4;
  const int64_t items = 4 * p.channels;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < (items + 31) / 32 * 32;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    // Lanes behind the last one do its work again, and keep it to themselves.
    const bool is_item = i < items;
    const int64_t d = (is_item ? i : items - 1) / 4;
    const int quarter = static_cast<int>(i % 4) * kEach;
    float A[kEach];
    load_floats(A, p.A + d * kStates + quarter);
    const float bias = p.delta_bias[d], D = p.D[d];
    for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
      const int64_t at = row * p.channels + d;
      float state[kEach];
      load_floats(state, p.state + at * kStates + quarter);
      const float u = widen(p.u[at]), z = widen(p.z[row * p.z_stride + d]);
      const float delta = softplus_fast(widen(p.delta[at]) + bias), du = delta * u, decay = delta * kLog2E;
      const W *const B = p.B + row * p.B_stride + quarter, *const C = p.C + row * p.C_stride + quarter;
      float y = 0;
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        state[n] = fmaf(exp2_fast(decay * A[n]), state[n], du * widen(B[n]));
        y = fmaf(widen(C[n]), state[n], y);
      }
      y = fmaf(D, u, sum_lanes(y, 4)) * z * sigmoid_fast(z);
      if (is_item) store_floats(p.state + at * kStates + quarter, state);
      if (is_item && quarter == 0) p.y[at] = narrow<W>(y);
    }
  }
}

}  // namespace

template <typename W>
void conv_rows(const ConvRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  convolve<<<blocks_for(p.channels, p.rows), kThreads, 0, stream>>>(p);
  check_launch("conv_rows");
}

template <typename W>
void state_rows(const StateRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  const auto kernel = p.states == 8    ? advance<W, 8>
                      : p.states == 16 ? advance<W, 16>
                      : p.states == 32 ? advance<W, 32>
                                       : advance<W, 64>;
  kernel<<<blocks_for(4 * p.channels, p.rows), kThreads, 0, stream>>>(p);
  check_launch("state_rows");
}

#define ADDER_INSTANTIATE(W)                               \
  template void conv_rows(const ConvRows<W>&, CudaStream); \
  template void state_rows(const StateRows<W>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)

}  // namespace adder::kernels::cuda
