#pragma once

#include "adder/kernels/scan_tiles.cuh"
#include "adder/kernels/vector_bits.cuh"

// What the scans of a few steps share. They divide a warp as the fast scans do (lane / 4 has two channels, lane % 4 a
// quarter of their states) but have no tiles in shared memory, and walk through the batch: A and the sums over
// sequences stay in registers.
namespace adder::kernels::cuda {

constexpr int kShortWarps = 4, kShortChannels = 16;

// How many blocks walk through the batch side by side for each of the `blocks` of channels, by the shape alone: what
// a large GPU holds at once if a processor holds `resident`.
inline int64_t short_scan_walkers(const SequenceLayout& layout, int64_t blocks, int64_t resident) {
  const int64_t full = 132 * resident / std::max<int64_t>(blocks, 1);
  return std::clamp<int64_t>(full, 1, std::clamp<int64_t>(layout.sequences, 1, 65535));
}

// A lane's place: `block` of 64 channels, none of them of two groups. kPlain: neighbours can be read together, nothing
// is masked, and no element is further than 2^31 from the first.
template <typename T, int N, bool kPlain>
struct ShortLane {
  static constexpr int kStates = N / 4;
  using Index = std::conditional_t<kPlain, int, int64_t>;
  int q;
  int64_t block, g, d;
  bool real[2];
  float A[2][kStates], skip[2], bias[2];

  __device__ explicit ShortLane(const SelectiveScanInputs<T>& p) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    q = lane % 4;
    block = blockIdx.x;
    const int64_t group_channels = p.channels / p.groups;
    const int64_t group_blocks = (group_channels + kShortWarps * kShortChannels - 1) / (kShortWarps * kShortChannels);
    g = block / group_blocks;
    d = g * group_channels + (block % group_blocks * kShortWarps + warp) * kShortChannels + 2 * (lane / 4);
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
  __device__ __forceinline__ int64_t state(const SelectiveScanInputs<T>& p, int64_t s, int c) const {
    return (s * p.channels + d + c) * N + q * kStates;
  }
  __device__ __forceinline__ void initial(const SelectiveScanInputs<T>& p, int64_t s, int c,
                                          float (&h)[kStates]) const {
#pragma unroll
    for (int n = 0; n < kStates; ++n)
      h[n] = real[c] && p.initial_state != nullptr ? p.initial_state[state(p, s, c) + n] : 0.0f;
  }
  template <typename V>
  __device__ __forceinline__ V* channel(const View3<V>& v, int64_t s, int64_t t) const {
    return v.data + (static_cast<Index>(s) * static_cast<Index>(v.b) + static_cast<Index>(t) * static_cast<Index>(v.l) +
                     static_cast<Index>(d) * (kPlain ? 1 : static_cast<Index>(v.d)));
  }
  // Zeros where the step does not count.
  __device__ __forceinline__ void values(const View3<const T>& v, int64_t s, int64_t t, bool counted,
                                         float (&to)[2]) const {
    const T* const from = channel(v, s, t);
    if constexpr (kPlain) {
      const float2 both = counted && real[0] ? pair(from) : float2{0, 0};
      to[0] = both.x, to[1] = both.y;
    } else {
#pragma unroll
      for (int c = 0; c < 2; ++c) to[c] = counted && real[c] ? widen(from[c * v.d]) : 0.0f;
    }
  }
  __device__ __forceinline__ void store(const View3<T>& v, int64_t s, int64_t t, bool there,
                                        const float (&from)[2]) const {
    T* const to = channel(v, s, t);
    if constexpr (kPlain) {
      store_pair_if(there && real[0], to, from[0], from[1]);
    } else {
#pragma unroll
      for (int c = 0; c < 2; ++c)
        if (there && real[c]) to[c * v.d] = narrow<T>(from[c]);
    }
  }
  // This lane's quarter of B or C.
  __device__ __forceinline__ const T* states(const View4<const T>& v, int64_t s, int64_t t) const {
    return v.data +
           (static_cast<Index>(s) * static_cast<Index>(v.b) + static_cast<Index>(t) * static_cast<Index>(v.l) +
            static_cast<Index>(g) * static_cast<Index>(v.g) + q * kStates * (kPlain ? 1 : static_cast<Index>(v.n)));
  }
  __device__ __forceinline__ void matrix(const View4<const T>& v, int64_t s, int64_t t, bool counted,
                                         float (&to)[kStates]) const {
    const T* const from = states(v, s, t);
    if constexpr (kPlain) {
      Packed<T, kStates> bits;
      bits.load(from);
      bits.floats(to);
    } else {
#pragma unroll
      for (int n = 0; n < kStates; ++n) to[n] = counted ? widen(from[n * v.n]) : 0.0f;
    }
  }
  __device__ __forceinline__ int64_t time(const SequenceLayout& layout, int j) const {
    return layout.reverse ? static_cast<int>(layout.length) - 1 - j : j;
  }
  // Whether this lane's own step j counts.
  __device__ __forceinline__ bool counted(const SequenceLayout& layout, int64_t s, int j) const {
    return j < layout.length && (kPlain || counts(layout.mask, s, time(layout, j)));
  }
  // delta, and delta u; zeros for a step that does not count.
  __device__ __forceinline__ void step(const SelectiveScanInputs<T>& p, const float (&pre)[2], const float (&u)[2],
                                       bool counted, float (&delta)[2], float (&input)[2]) const {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float x = pre[c] + bias[c], soft = softplus_fast(x);
      delta[c] = counted ? (p.delta_softplus ? soft : x) : 0.0f;
      input[c] = counted ? delta[c] * u[c] : 0.0f;
    }
  }
};

template <typename T>
bool is_short_plain(const SelectiveScanInputs<T>& p, std::initializer_list<View3<T>> outputs) {
  const auto near = [&](int64_t b, int64_t l, int64_t g = 0) {
    return p.layout.sequences * std::abs(b) + p.layout.length * std::abs(l) + p.groups * std::abs(g) + p.channels +
               p.state <
           (int64_t{1} << 31);
  };
  bool plain = plain_piece(p) == 16 && near(p.u.b, p.u.l) && near(p.delta.b, p.delta.l) && near(p.z.b, p.z.l) &&
               near(p.B_step.b, p.B_step.l, p.B_step.g) && near(p.C_step.b, p.C_step.l, p.C_step.g);
  for (const View3<T>& v : outputs)
    plain = plain && (v.data == nullptr || (v.d == 1 && reinterpret_cast<uintptr_t>(v.data) % 8 == 0 && v.b % 2 == 0 &&
                                            v.l % 2 == 0 && near(v.b, v.l)));
  return plain;
}

// What a single step of one sequence needs but its state; every lane has its channels' values itself.
template <typename T, int N, bool kPlain>
struct SingleStep {
  float pre[2], u[2], z[2], B[N / 4], C[N / 4];
  bool counted;

  __device__ __forceinline__ void load(const ShortLane<T, N, kPlain>& lane, const SelectiveScanInputs<T>& p,
                                       int64_t s) {
    if (s >= p.layout.sequences) return;
    counted = lane.counted(p.layout, s, 0);
    lane.values(p.delta, s, 0, counted, pre);
    lane.values(p.u, s, 0, counted, u);
    if (p.z.data != nullptr) lane.values(p.z, s, 0, counted, z);
    lane.matrix(p.B_step, s, 0, counted, B);
    lane.matrix(p.C_step, s, 0, counted, C);
  }
};

// A single step on its way: several sequences ahead take few registers where neighbours can be read together.
template <typename T, int N, bool kPlain>
struct StepAhead {
  static constexpr int kAhead = 1;
  SingleStep<T, N, kPlain> step;
  __device__ __forceinline__ void load(const ShortLane<T, N, kPlain>& lane, const SelectiveScanInputs<T>& p,
                                       int64_t s) {
    step.load(lane, p, s);
  }
  __device__ __forceinline__ SingleStep<T, N, kPlain> get() const { return step; }
};
template <typename T, int N>
struct StepAhead<T, N, true> {
  static constexpr int kAhead = 3;
  Bits<T, 2> pre, u, z;
  Bits<T, N / 4> B, C;
  __device__ __forceinline__ void load(const ShortLane<T, N, true>& lane, const SelectiveScanInputs<T>& p, int64_t s) {
    if (s >= p.layout.sequences) return;
    pre.load(lane.channel(p.delta, s, 0), lane.real[0]);
    u.load(lane.channel(p.u, s, 0), lane.real[0]);
    z.load(lane.channel(p.z, s, 0), lane.real[0] && p.z.data != nullptr);
    B.load(lane.states(p.B_step, s, 0), true);
    C.load(lane.states(p.C_step, s, 0), true);
  }
  __device__ __forceinline__ SingleStep<T, N, true> get() const {
    SingleStep<T, N, true> step;
    pre.floats(step.pre), u.floats(step.u), z.floats(step.z), B.floats(step.B), C.floats(step.C);
    step.counted = true;
    return step;
  }
};

// The value that lane q = `step` of the same channels has.
__device__ __forceinline__ float of_step(float x, int step) {
  return __shfl_sync(kAllLanes, x, (threadIdx.x & 28) + static_cast<unsigned>(step));
}

}  // namespace adder::kernels::cuda
