#include "adder/kernels/causal_conv1d_cuda.h"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/sequence_rows.cuh"

namespace adder::kernels::cuda {
namespace {

// Channels of a thread, and steps that it walks through with the last K - 1 inputs in registers.
template <typename T>
constexpr int kForwardChannels = 16 / static_cast<int>(sizeof(T));
constexpr int kForwardSteps = 32;

// Row j of what the convolution sees: the initial window before the first step.
template <typename T, int kChannels>
__device__ __forceinline__ void read_row(const CausalConv1dInputs<T>& p, const SequenceRows& rows, int64_t s, int64_t d,
                                         int64_t j, float (&x)[kChannels]) {
  if (j >= 0) {
    Packed<T, kChannels> bits;
    bits.load(p.x.data + rows.b * p.x.b + rows.time(j) * p.x.l + d);
    bits.floats(x);
    return;
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    x[c] = p.initial_window != nullptr ? p.initial_window[(s * (p.width - 1) + p.width - 1 + j) * p.channels + d + c]
                                       : 0.0f;
}

template <typename T, int kWidth, bool kSilu>
__global__ void __launch_bounds__(256) fast_forward(const CausalConv1dForward<T> p) {
  constexpr int kChannels = kForwardChannels<T>;
  const int64_t columns = p.channels / kChannels, runs = (p.layout.length + kForwardSteps - 1) / kForwardSteps;
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * runs * p.layout.sequences) return;
  const int64_t d = i % columns * kChannels, s = i / columns / runs, j0 = i / columns % runs * kForwardSteps;
  const SequenceRows rows(p.layout, s);
  float weight[kChannels][kWidth], bias[kChannels], x[kWidth][kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    bias[c] = p.bias.data != nullptr ? p.bias.data[(d + c) * p.bias.d] : 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[c][k] = p.weight.data[(d + c) * p.weight.row + k * p.weight.column];
  }
#pragma unroll
  for (int k = 0; k < kWidth - 1; ++k) read_row(p, rows, s, d, j0 - (kWidth - 1) + k, x[k]);
  const int64_t last = min(j0 + kForwardSteps, rows.length);
  for (int64_t j = j0; j < last; j += 4) {
    Packed<T, kChannels> bits[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) bits[k].load(p.x.data + rows.b * p.x.b + rows.time(min(j + k, last - 1)) * p.x.l + d);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (j + k >= last) break;
      bits[k].floats(x[kWidth - 1]);
      float y[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        y[c] = bias[c];
#pragma unroll
        for (int w = 0; w < kWidth; ++w) y[c] = fmaf(weight[c][w], x[w][c], y[c]);
        if constexpr (kSilu) y[c] *= sigmoid_fast(y[c]);
      }
      store_values(p.y.data + rows.b * p.y.b + rows.time(j + k) * p.y.l + d, y);
#pragma unroll
      for (int w = 0; w < kWidth - 1; ++w)
#pragma unroll
        for (int c = 0; c < kChannels; ++c) x[w][c] = x[w + 1][c];
    }
  }
  if (last == rows.length)
#pragma unroll
    for (int k = 0; k < kWidth - 1; ++k) store_values(p.final_window + (s * (kWidth - 1) + k) * p.channels + d, x[k]);
}

constexpr int kBackwardChannels = 4;

// A thread walks one slab of one sequence, four channels: da_j from x_(j - K + 1) .. x_j, and dx_(j - K + 1) from
// da_(j - K + 1) .. da_j; it goes K - 1 steps further than its slab for the latter.
template <typename T, int kWidth, bool kSilu>
__global__ void __launch_bounds__(128) fast_backward(const CausalConv1dBackward<T> p, ConvSlabs slabs) {
  constexpr int kChannels = kBackwardChannels;
  const int64_t columns = p.channels / kChannels, runs = slabs.count / p.layout.sequences;
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * slabs.count) return;
  const int64_t d = i % columns * kChannels, s = i / columns / runs, run = i / columns % runs;
  const int64_t j0 = run * slabs.length;
  const SequenceRows rows(p.layout, s);
  float weight[kWidth][kChannels], dweight[kWidth][kChannels] = {}, dbias[kChannels] = {}, bias[kChannels];
  float x[kWidth][kChannels], da[kWidth][kChannels] = {};
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    bias[c] = p.bias.data != nullptr ? p.bias.data[(d + c) * p.bias.d] : 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k][c] = p.weight.data[(d + c) * p.weight.row + k * p.weight.column];
  }
#pragma unroll
  for (int k = 0; k < kWidth - 1; ++k) read_row(p, rows, s, d, j0 - (kWidth - 1) + k, x[k]);
  const int64_t last = min(j0 + slabs.length, rows.length), beyond = last + kWidth - 1;
  // The steps before the sequence: the initial window's gradient takes what reaches them.
  const int64_t first_out = run == 0 ? -(kWidth - 1) : j0;
  constexpr int kAhead = 4;
  for (int64_t j = j0; j < beyond; j += kAhead) {
    Packed<T, kChannels> x_bits[kAhead], dy_bits[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t t = rows.time(min(j + k, rows.length - 1));
      x_bits[k].load(p.x.data + rows.b * p.x.b + t * p.x.l + d);
      dy_bits[k].load(p.dy.data + rows.b * p.dy.b + t * p.dy.l + d);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (j + k >= beyond) break;
      const bool real = j + k < rows.length, own = j + k < last;
      x_bits[k].floats(x[kWidth - 1]);
      dy_bits[k].floats(da[kWidth - 1]);
      float dx[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        float& g = da[kWidth - 1][c];
        if (!real) g = x[kWidth - 1][c] = 0;
        if constexpr (kSilu) {
          float a = bias[c];
#pragma unroll
          for (int w = 0; w < kWidth; ++w) a = fmaf(weight[w][c], x[w][c], a);
          const float sigma = sigmoid_fast(a);
          g *= sigma * fmaf(a, 1.0f - sigma, 1.0f);
          if (!real) g = 0;
        }
        if (own) {
#pragma unroll
          for (int w = 0; w < kWidth; ++w) dweight[w][c] = fmaf(g, x[w][c], dweight[w][c]);
          dbias[c] += g;
        }
        dx[c] = 0;
#pragma unroll
        for (int w = 0; w < kWidth; ++w) dx[c] = fmaf(da[w][c], weight[kWidth - 1 - w][c], dx[c]);
      }
      const int64_t out = j + k - (kWidth - 1);
      if (out >= rows.length - (kWidth - 1) && p.dfinal_window != nullptr)
#pragma unroll
        for (int c = 0; c < kChannels; ++c)
          dx[c] += p.dfinal_window[(s * (kWidth - 1) + out - rows.length + kWidth - 1) * p.channels + d + c];
      if (out >= 0 && out >= first_out && out < last)
        store_values(p.dx.data + rows.b * p.dx.b + rows.time(out) * p.dx.l + d, dx);
      else if (out < 0 && out >= first_out && p.dinitial_window != nullptr)
        store_values(p.dinitial_window + (s * (kWidth - 1) + out + kWidth - 1) * p.channels + d, dx);
#pragma unroll
      for (int w = 0; w < kWidth - 1; ++w)
#pragma unroll
        for (int c = 0; c < kChannels; ++c) x[w][c] = x[w + 1][c], da[w][c] = da[w + 1][c];
    }
  }
  float* const sums = static_cast<float*>(p.workspace) + (s * runs + run) * (kWidth + 1) * p.channels + d;
#pragma unroll
  for (int w = 0; w < kWidth; ++w) store_values(sums + w * p.channels, dweight[w]);
  store_values(sums + kWidth * p.channels, dbias);
}

template <typename F>
void with_width(int64_t width, const F& f) {
  if (width == 2) f.template operator()<2>();
  if (width == 3) f.template operator()<3>();
  if (width == 4) f.template operator()<4>();
}

}  // namespace

template <typename T>
void causal_conv1d_forward_fast(const CausalConv1dForward<T>& p, CudaStream stream) {
  const int64_t runs = (p.layout.length + kForwardSteps - 1) / kForwardSteps;
  const int64_t threads = p.channels / kForwardChannels<T> * runs * p.layout.sequences;
  const auto blocks = static_cast<unsigned>((threads + 255) / 256);
  with_width(p.width, [&]<int kWidth>() {
    if (p.activation == ConvActivation::kSilu)
      fast_forward<T, kWidth, true><<<blocks, 256, 0, stream>>>(p);
    else
      fast_forward<T, kWidth, false><<<blocks, 256, 0, stream>>>(p);
  });
  check_launch("causal_conv1d, fast forward");
}

template <typename T>
void causal_conv1d_backward_fast(const CausalConv1dBackward<T>& p, CudaStream stream) {
  const ConvSlabs slabs = causal_conv1d_slabs<T>(p);
  const int64_t threads = p.channels / kBackwardChannels * slabs.count;
  const auto blocks = static_cast<unsigned>((threads + 127) / 128);
  with_width(p.width, [&]<int kWidth>() {
    if (p.activation == ConvActivation::kSilu)
      fast_backward<T, kWidth, true><<<blocks, 128, 0, stream>>>(p, slabs);
    else
      fast_backward<T, kWidth, false><<<blocks, 128, 0, stream>>>(p, slabs);
  });
  check_launch("causal_conv1d, fast backward");
  causal_conv1d_sum_slabs(p, slabs.count, stream);
}

#define ADDER_INSTANTIATE(T)                                                           \
  template void causal_conv1d_forward_fast(const CausalConv1dForward<T>&, CudaStream); \
  template void causal_conv1d_backward_fast(const CausalConv1dBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
