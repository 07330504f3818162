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

template <typename W, int kWidth>
__global__ void __launch_bounds__(kThreads) convolve(const ConvRows<W> p) {
  constexpr int kPast = kWidth - 1;
  const int64_t d = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (d >= p.channels) return;
  float weight[kWidth];
#pragma unroll
  for (int k = 0; k < kWidth; ++k) weight[k] = p.weight[d * kWidth + k];
  const float bias = p.bias != nullptr ? p.bias[d] : 0.0f;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    float* const window = p.window + row * kPast * p.channels + d;
    float x[kWidth], sum = bias;
#pragma unroll
    for (int k = 0; k < kPast; ++k) x[k] = window[k * p.channels];
    x[kPast] = widen(p.x[row * p.x_stride + d]);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum = fmaf(weight[k], x[k], sum);
#pragma unroll
    for (int k = 0; k < kPast; ++k) window[k * p.channels] = x[k + 1];
    p.u[row * p.channels + d] = narrow<W>(sum * sigmoid_fast(sum));
  }
}

// Any width.
template <typename W>
__global__ void __launch_bounds__(kThreads) convolve_wide(const ConvRows<W> p) {
  const int64_t last = p.width - 1, d = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (d >= p.channels) return;
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

// Rows of a thread at a time: all their loads are on their way before the first is worked on.
template <int kStates>
constexpr int kRowsAtOnce = kStates <= 16 ? 2 : 1;

// Four lanes share a channel. kPacked: a quarter of a row of B and C is aligned as a whole.
template <typename W, int kStates, bool kPacked>
__global__ void __launch_bounds__(kThreads) advance(const StateRows<W> p) {
  constexpr int kEach = kStates / 4, kRows = kRowsAtOnce<kStates>;
  const int64_t items = 4 * p.channels, i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  // Lanes behind the last one do its work again, and keep it to themselves.
  const bool is_item = i < items;
  const int64_t d = (is_item ? i : items - 1) / 4;
  const int quarter = static_cast<int>(i % 4) * kEach;
  float A[kEach];
  load_floats(A, p.A + d * kStates + quarter);
  const float bias = p.delta_bias[d], D = p.D[d];
  for (int64_t first = blockIdx.y * int64_t{kRows}; first < p.rows; first += gridDim.y * int64_t{kRows}) {
    float state[kRows][kEach], B[kRows][kEach], C[kRows][kEach];
    W u[kRows], z[kRows], delta[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = min(first + r, p.rows - 1), at = row * p.channels + d;
      load_floats(state[r], p.state + at * kStates + quarter);
      u[r] = p.u[at], z[r] = p.z[row * p.z_stride + d], delta[r] = p.delta[at];
      const W *const B_at = p.B + row * p.B_stride + quarter, *const C_at = p.C + row * p.C_stride + quarter;
      if constexpr (kPacked) {
        Packed<W, kEach> B_bits, C_bits;
        B_bits.load(B_at), C_bits.load(C_at);
        B_bits.floats(B[r]), C_bits.floats(C[r]);
      } else {
#pragma unroll
        for (int n = 0; n < kEach; ++n) B[r][n] = widen(B_at[n]), C[r][n] = widen(C_at[n]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (first + r) * p.channels + d;
      const bool there = is_item && first + r < p.rows;
      const float x = widen(u[r]), gate = widen(z[r]);
      const float step = softplus_fast(widen(delta[r]) + bias), du = step * x, decay = step * kLog2E;
      float y = 0;
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        state[r][n] = fmaf(exp2_fast(decay * A[n]), state[r][n], du * B[r][n]);
        y = fmaf(C[r][n], state[r][n], y);
      }
      y = fmaf(D, x, sum_lanes(y, 4)) * gate * sigmoid_fast(gate);
      if (there) store_floats(p.state + at * kStates + quarter, state[r]);
      if (there && quarter == 0) p.y[at] = narrow<W>(y);
    }
  }
}

template <typename W, int kStates>
void advance_rows(const StateRows<W>& p, CudaStream stream) {
  constexpr size_t kBytes = kStates / 4 * sizeof(W);
  constexpr bool kCanPack = kBytes <= 16;
  const bool packed = kCanPack && reinterpret_cast<uintptr_t>(p.B) % kBytes == 0 &&
                      reinterpret_cast<uintptr_t>(p.C) % kBytes == 0 && p.B_stride % (kStates / 4) == 0 &&
                      p.C_stride % (kStates / 4) == 0;
  const auto kernel = packed ? advance<W, kStates, kCanPack> : advance<W, kStates, false>;
  constexpr int kRows = kRowsAtOnce<kStates>;
  kernel<<<blocks_for(4 * p.channels, (p.rows + kRows - 1) / kRows), kThreads, 0, stream>>>(p);
}

}  // namespace

template <typename W>
void conv_rows(const ConvRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  const auto kernel = p.width == 2   ? convolve<W, 2>
                      : p.width == 3 ? convolve<W, 3>
                      : p.width == 4 ? convolve<W, 4>
                                     : convolve_wide<W>;
  kernel<<<blocks_for(p.channels, p.rows), kThreads, 0, stream>>>(p);
  check_launch("conv_rows");
}

template <typename W>
void state_rows(const StateRows<W>& p, CudaStream stream) {
  if (p.rows * p.channels == 0) return;
  switch (p.states) {
    case 8:
      advance_rows<W, 8>(p, stream);
      break;
    case 16:
      advance_rows<W, 16>(p, stream);
      break;
    case 32:
      advance_rows<W, 32>(p, stream);
      break;
    default:
      advance_rows<W, 64>(p, stream);
      break;
  }
  check_launch("state_rows");
}

#define ADDER_INSTANTIATE(W)                               \
  template void conv_rows(const ConvRows<W>&, CudaStream); \
  template void state_rows(const StateRows<W>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)

}  // namespace adder::kernels::cuda
