#pragma once

#include "adder/kernels/scan_tiles.cuh"

// What the scans of a few steps share. They divide a warp as the fast scans do (lane / 4 has two channels, lane % 4 a
// quarter of their states) but keep everything in registers, prepare lane q's own step q, and walk through the batch: A
// and the sums over sequences stay.
namespace adder::kernels::cuda {

constexpr int kShortWarps = 4, kShortChannels = 16;

// How many warps walk through the batch side by side, by the shape alone.
inline int64_t short_scan_walkers(const SequenceLayout& layout, int64_t tiles) {
  constexpr int64_t kFull = 8448;  // twice what fills a large GPU
  return std::clamp<int64_t>(kFull / std::max<int64_t>(tiles, 1), 1, std::clamp<int64_t>(layout.sequences, 1, 65535));
}

// A lane's place: `block` of 64 channels, none of them of two groups.
template <typename T, int N>
struct ShortLane {
  static constexpr int kStates = N / 4;
  int q, group;
  int64_t block, g, d;
  bool real[2];
  float A[2][kStates], skip[2], bias[2];

  __device__ explicit ShortLane(const SelectiveScanInputs<T>& p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    q = lane % 4;
    group = lane / 4;
    block = blockIdx.x;
    const int64_t group_channels = p.channels / p.groups;
    const int64_t group_blocks = (group_channels + kShortWarps * kShortChannels - 1) / (kShortWarps * kShortChannels);
    g = block / group_blocks;
    d = g * group_channels + (block % group_blocks * kShortWarps + warp) * kShortChannels + 2 * group;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      real[c] = d + c < (g + 1) * group_channels;
      skip[c] = real[c] && p.D.data != nullptr ? p.D.data[(d + c) * p.D.d] : 0.0f;
      bias[c] = real[c] && p.delta_bias.data != nullptr ? p.delta_bias.data[(d + c) * p.delta_bias.d] : 0.0f;
#pragma unroll
      for (int n = 0; n < kStates; ++n)
        A[c][n] = real[c] ? kLog2E * p.A.data[(d + c) * p.A.row + (q * kStates + n) * p.A.column] : 0.0f;
    }
  }
  // The first of this lane's states of a channel, in (S, D, N).
  __device__ int64_t state(const SelectiveScanInputs<T>& p, int64_t s, int c) const {
    return (s * p.channels + d + c) * N + q * kStates;
  }
  __device__ void values(const View3<const T>& v, int64_t b, int64_t t, bool counted, float (&to)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c)
      to[c] = counted && real[c] ? widen(v.data[b * v.b + t * v.l + (d + c) * v.d]) : 0.0f;
  }
  __device__ void store(const View3<T>& v, int64_t b, int64_t t, bool there, const float (&from)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c)
      if (there && real[c]) v.data[b * v.b + t * v.l + (d + c) * v.d] = narrow<T>(from[c]);
  }
  __device__ void states(const View4<const T>& v, int64_t b, int64_t t, bool counted, float (&to)[kStates]) const {
    const T* const from = v.data + b * v.b + t * v.l + g * v.g + q * kStates * v.n;
#pragma unroll
    for (int n = 0; n < kStates; ++n) to[n] = counted ? widen(from[n * v.n]) : 0.0f;
  }
  // delta, and delta u; zeros for a step that does not count.
  __device__ void step(const SelectiveScanInputs<T>& p, const float (&pre)[2], const float (&u)[2], bool counted,
                       float (&delta)[2], float (&input)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float x = pre[c] + bias[c], soft = softplus_fast(x);
      delta[c] = counted ? (p.delta_softplus ? soft : x) : 0.0f;
      input[c] = counted ? delta[c] * u[c] : 0.0f;
    }
  }
};

// The value that lane q = `step` of the same channels has.
__device__ __forceinline__ float of_step(float x, int step) {
  return __shfl_sync(kAllLanes, x, (threadIdx.x & 28) + static_cast<unsigned>(step));
}

}  // namespace adder::kernels::cuda
