#pragma once

#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/decode_plan.cuh"

// What threads ask for before they are told what to do with it.
namespace adder::kernels::cuda::decoding {

// A channel's four lanes; each has a quarter of its states.
template <int kStates>
struct ChannelLane {
  static constexpr int kEach = kStates / 4;
  int row, channel, quarter;
  float state[kEach], A[kEach], bias, D;

  template <typename W>
  __device__ __forceinline__ void load(const DecodeStep<W>& p, const DecodeLayer<W>& layer, Share own, int item) {
    const int channels = own.end - own.begin;
    row = p.rows == 1 ? 0 : item / (4 * channels);
    channel = item / 4 - row * channels;
    quarter = item % 4;
    const int d = own.begin + channel;
    const float* const from = layer.state + (row * p.d_inner + d) * kStates + quarter * kEach;
    load_floats(state, from);
    load_floats(A, layer.A + d * kStates + quarter * kEach);
#pragma unroll
    for (int n = 0; n < kEach; ++n) A[n] *= kLog2E;
    bias = layer.dt_bias[d];
    D = layer.D[d];
  }
};

// What the convolution of one channel of one row takes, asked for before its newest input is known.
struct ConvolutionLane {
  float window[kMostWidth - 1], weight[kMostWidth], bias;

  template <typename W>
  __device__ __forceinline__ void load(const DecodeStep<W>& p, const DecodeLayer<W>& layer, int row, int d) {
    const int width = p.width;
    const float* const from = layer.window + row * (width - 1) * p.d_inner + d;
#pragma unroll
    for (int k = 0; k < kMostWidth; ++k) {
      if (k < kMostWidth - 1 && k + 1 < width) window[k] = from[k * p.d_inner];
      if (k < width) weight[k] = layer.conv_weight[d * width + k];
    }
    bias = layer.conv_bias != nullptr ? layer.conv_bias[d] : 0.0f;
  }

  // The output before the activation; the window moves on.
  template <typename W>
  __device__ __forceinline__ float step(const DecodeStep<W>& p, const DecodeLayer<W>& layer, int row, int d,
                                        float newest) const {
    const int width = p.width;
    float* const to = layer.window + row * (width - 1) * p.d_inner + d;
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kMostWidth; ++k) {
      if (k >= width) break;
      const float x = k + 1 < width ? window[k < kMostWidth - 1 ? k : 0] : newest;
      sum = fmaf(weight[k], x, sum);
      if (k > 0) to[(k - 1) * p.d_inner] = x;
    }
    return sum;
  }
};

}  // namespace adder::kernels::cuda::decoding
