#pragma once

#include "adder/kernels/scan_tiles.cuh"
#include "adder/kernels/selective_scan_sums.cuh"

// The kernel of the fast backward scan.
namespace adder::kernels::cuda {

// The layout of the forward kernel. A chunk of 16 steps is loaded and prepared at a time, from the last; it is done in
// two halves of 8 steps: the states forward from the saved one, with a_t and a_t h_(t-1) kept in registers, then the
// gradients backward. dB and dC are added over the block's channels through shared memory.
template <typename T, int N, int kWarpsEach>
struct BackwardTiles {
  static constexpr int kSteps = 16, kHalf = 8, kChannels = 16, kStates = N / 4;
  static_assert(kSteps == kCudaScanChunk);
  struct Raw {
    T delta[kSteps][kChannels], u[kSteps][kChannels], z[kSteps][kChannels], dy[kSteps][kChannels], BC[2][kSteps][N];
    float saved[kChannels][N];  // the state before the chunk
  };
  struct Ready {
    float step[kSteps][8][4];  // {delta, delta u} of each of a lane's two channels
    float dy[kSteps][8][2];    // times silu(z)
    float BC[2][kSteps][N];
  };
  struct Warp {
    Raw raw[2];
    Ready ready;
  };
  Warp warp[kWarpsEach];
  float sums[kHalf][2][kWarpsEach][8][N];  // dB and dC of the lanes' channels
};

// Bytes from one chunk's first row to the next one's.
struct BackwardStrides {
  TileStrides inputs;
  int dy, du, ddelta, dz;
};

// kPiece: what plain_piece() says.
template <typename T, int N, bool kGate, int kPiece, int kWarpsEach, int kBlocks>
__global__ void __launch_bounds__(32 * kWarpsEach, kBlocks)
    fast_backward(const __grid_constant__ SelectiveScanBackward<T> p, const BackwardStrides strides,
                  const BackwardSums out, const ScanParts parts) {
  using Tiles = BackwardTiles<T, N, kWarpsEach>;
  constexpr bool kPlain = kPiece > 0;
  constexpr int kSteps = Tiles::kSteps, kHalf = Tiles::kHalf, kChannels = Tiles::kChannels, kStates = Tiles::kStates;
  extern __shared__ __align__(16) char shared[];
  Tiles& tiles = *reinterpret_cast<Tiles*>(shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int q = lane % 4, group = lane / 4;
  const bool odd = lane & 1, high = lane & 2;
  const int64_t group_channels = p.channels / p.groups;
  const int64_t group_blocks = (group_channels + kWarpsEach * kChannels - 1) / (kWarpsEach * kChannels);
  const int64_t all_blocks = group_blocks * p.groups;
  const int64_t block = blockIdx.x % all_blocks, row = blockIdx.x / all_blocks, g = block / group_blocks;
  const int64_t s = row % p.layout.sequences, part = row / p.layout.sequences;
  const int64_t d0 = g * group_channels + (block % group_blocks * kWarpsEach + warp) * kChannels;
  const int columns =
      static_cast<int>(max(min(static_cast<int64_t>(kChannels), (g + 1) * group_channels - d0), int64_t{0}));
  SequenceRows rows(p.layout, s);
  const bool last_part = (part + 1) * parts.steps >= rows.length;
  rows.cut(part * parts.steps, parts.steps);
  // What is behind the last part that has steps is the final state.
  const float* const behind = last_part ? p.dfinal_state : parts.begins + part * p.layout.sequences * p.channels * N;
  const int length = static_cast<int>(rows.length), chunks = (length + kSteps - 1) / kSteps;

  const int64_t d = d0 + 2 * group;  // this lane's first channel
  bool real[2];
  float A[2][kStates], dh[2][kStates], dA[2][kStates] = {}, skip[2], bias[2], dskip[2] = {}, dbias[2] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    real[c] = 2 * group + c < columns;
    skip[c] = real[c] && p.D.data != nullptr ? p.D.data[(d + c) * p.D.d] : 0.0f;
    bias[c] = real[c] && p.delta_bias.data != nullptr ? p.delta_bias.data[(d + c) * p.delta_bias.d] : 0.0f;
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      A[c][n] = real[c] ? kLog2E * p.A.data[(d + c) * p.A.row + (q * kStates + n) * p.A.column] : 0.0f;
      dh[c][n] = real[c] && behind != nullptr ? behind[(s * p.channels + d + c) * N + q * kStates + n] : 0.0f;
    }
  }
  const int own = lane % 8;
  float own_bias[2];
#pragma unroll
  for (int c = 0; c < 2; ++c)
    own_bias[c] = 2 * own + c < columns && p.delta_bias.data != nullptr
                      ? p.delta_bias.data[(d0 + 2 * own + c) * p.delta_bias.d]
                      : 0.0f;

  typename Tiles::Warp& mine = tiles.warp[warp];
  const auto first_channel = [&](const auto& v) { return v.data + rows.b * v.b + rows.first * v.l + d0 * v.d; };
  const auto first_state = [&](const View4<const T>& v) { return v.data + rows.b * v.b + rows.first * v.l + g * v.g; };
  using ChannelCopy = TileCopy<T, kSteps, kChannels>;
  using StateCopy = TileCopy<T, kSteps, N, kPlain ? kPiece : 16>;
  const ChannelCopy copy_delta(first_channel(p.delta), rows.step * p.delta.l, columns, lane);
  const ChannelCopy copy_u(first_channel(p.u), rows.step * p.u.l, columns, lane);
  const ChannelCopy copy_z(kGate ? first_channel(p.z) : nullptr, kGate ? rows.step * p.z.l : 0, columns, lane);
  const ChannelCopy copy_dy(first_channel(p.dy), rows.step * p.dy.l, columns, lane);
  const StateCopy copy_B(first_state(p.B_step), rows.step * p.B_step.l, N, lane);
  const StateCopy copy_C(first_state(p.C_step), rows.step * p.C_step.l, N, lane);
  const float* const saved = p.border_states + (rows.chunk * p.channels + d0) * N + 4 * lane;
  const auto load = [&](int chunk, typename Tiles::Raw& to) {
    if (chunk >= 0) {
      const int j0 = chunk * kSteps, count = min(length - j0, kSteps);
#pragma unroll
      for (int i = 0; i < kChannels * N / 128; ++i) {  // the states lie side by side, and are aligned
        const bool there = (128 * i + 4 * lane) / N < columns;
        copy_piece<16>(&to.saved[0][0] + 128 * i + 4 * lane,
                       there ? saved + static_cast<int64_t>(chunk) * p.channels * N + 128 * i : p.border_states, there);
      }
      if constexpr (kPlain) {
        const TileStrides& in = strides.inputs;
        copy_delta.start(to.delta, chunk, in.delta, in.delta / kSteps, count, lane);
        copy_u.start(to.u, chunk, in.u, in.u / kSteps, count, lane);
        if constexpr (kGate) copy_z.start(to.z, chunk, in.z, in.z / kSteps, count, lane);
        copy_dy.start(to.dy, chunk, strides.dy, strides.dy / kSteps, count, lane);
        copy_B.start(to.BC[0], chunk, in.B, in.B / kSteps, count, lane);
        copy_C.start(to.BC[1], chunk, in.C, in.C / kSteps, count, lane);
      } else {
        const auto channels = [&](T(*to_rows)[kChannels], const View3<const T>& v) {
          copy_values<T, kSteps, kChannels>(to_rows, first_channel(v) + j0 * rows.step * v.l, rows.step * v.l, v.d,
                                            count, columns, lane);
        };
        const auto states = [&](T(*to_rows)[N], const View4<const T>& v) {
          copy_values<T, kSteps, N>(to_rows, first_state(v) + j0 * rows.step * v.l, rows.step * v.l, v.n, count, N,
                                    lane);
        };
        channels(to.delta, p.delta);
        channels(to.u, p.u);
        if constexpr (kGate) channels(to.z, p.z);
        channels(to.dy, p.dy);
        states(to.BC[0], p.B_step);
        states(to.BC[1], p.C_step);
      }
    }
    end_copies();
  };
  const auto prepare = [&](const typename Tiles::Raw& from, unsigned live) {
    typename Tiles::Ready& to = mine.ready;
#pragma unroll
    for (int i = 0; i < kSteps / 4; ++i) {
      const int t = 4 * i + lane / 8;
      const bool counted = live >> t & 1;
      const float2 raw = pair(&from.delta[t][2 * own]), x = pair(&from.u[t][2 * own]);
      float2 dy = pair(&from.dy[t][2 * own]);
      float dt0 = raw.x + own_bias[0], dt1 = raw.y + own_bias[1];
      const float soft0 = softplus_fast(dt0), soft1 = softplus_fast(dt1);
      dt0 = p.delta_softplus ? soft0 : dt0;
      dt1 = p.delta_softplus ? soft1 : dt1;
      if constexpr (kGate) {
        const float2 z = pair(&from.z[t][2 * own]);
        dy.x *= z.x * sigmoid_fast(z.x);
        dy.y *= z.y * sigmoid_fast(z.y);
      }
      *reinterpret_cast<float4*>(to.step[t][own]) =
          counted ? float4{dt0, dt0 * x.x, dt1, dt1 * x.y} : float4{0, 0, 0, 0};
      *reinterpret_cast<float2*>(to.dy[t][own]) = counted ? dy : float2{0, 0};
      const int t_BC = 4 * i + lane % 16 / 4;
      float v[kStates];
      Packed<T, kStates> bits;
      bits.load(&from.BC[lane / 16][t_BC][q * kStates]);
      bits.floats(v);
      if constexpr (!kPlain) {
        const bool real_step = live >> t_BC & 1;
#pragma unroll
        for (int n = 0; n < kStates; ++n) v[n] = real_step ? v[n] : 0.0f;
      }
      store_floats(&to.BC[lane / 16][t_BC][q * kStates], v);
    }
  };

  // What does not change from step to step of the addresses.
  const float* const step_rows = mine.ready.step[0][group];
  const float* const dy_rows = mine.ready.dy[0][group];
  const float* const B_rows = &mine.ready.BC[0][0][q * kStates];
  float* const sums_dB = &tiles.sums[0][0][warp][group][q * kStates];
  constexpr int kSumsRow = 2 * kWarpsEach * 8 * N, kSumsC = kWarpsEach * 8 * N, kC = kSteps * N;
  const auto output = [&](const View3<T>& v) {
    return reinterpret_cast<char*>(v.data + rows.b * v.b + rows.first * v.l + d * v.d);
  };
  char *const du_at = output(p.du), *const ddelta_at = output(p.ddelta), *const dz_at = kGate ? output(p.dz) : nullptr;
  // The sum over the block's channels that this thread makes: a pair of states of dB or dC of one step.
  constexpr int kPairs = kHalf * 2 * N / 2;
  static_assert(kPairs <= 32 * kWarpsEach);
  const int pair_n = thread % (N / 2) * 2, which = thread / (N / 2) % 2, pair_t = thread / N;
  const float* const pair_from = &tiles.sums[thread < kPairs ? pair_t : 0][which][0][0][pair_n];
  // dB from the first row on, dC from the second: the lanes of both then use different banks.
  const float* const pair_rotated = pair_from + which * N;
  const float* const pair_last = pair_from + (which == 0 ? 7 * N : 0);
  float* const dBC_at = out.dBC + (block * p.layout.batch * p.layout.length * 2 + which) * N + pair_n;

  // Eight steps from t0 on: h is the state before them; dh that after them, and then that before them.
  const auto half = [&](const typename Tiles::Raw& raw, int j0, int t0, unsigned live, float(&h)[2][kStates]) {
    const float* const step_at = step_rows + t0 * 32;
    const float* const dys_at = dy_rows + t0 * 16;
    const float* const B_at = B_rows + t0 * N;
    float a[kHalf][2][kStates], m[kHalf][2][kStates], y[2][2];
#pragma unroll
    for (int four = 0; four < 2; ++four) {
      float part[2][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int i = 4 * four + k;
        float step[4], dy[2], B[kStates], C[kStates], dC[kStates];
        load_floats(step, step_at + i * 32);
        load_floats(dy, dys_at + i * 16);
        load_floats(B, B_at + i * N);
        load_floats(C, B_at + kC + i * N);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            a[i][c][n] = exp2_fast(step[2 * c] * A[c][n]);
            m[i][c][n] = a[i][c][n] * h[c][n];
            h[c][n] = fmaf(step[2 * c + 1], B[n], m[i][c][n]);
            part[c][k] = n == 0 ? C[n] * h[c][n] : fmaf(C[n], h[c][n], part[c][k]);
            dC[n] = c == 0 ? dy[c] * h[c][n] : fmaf(dy[c], h[c][n], dC[n]);
          }
        store_floats(sums_dB + i * kSumsRow + kSumsC, dC);
      }
      if constexpr (kGate)
#pragma unroll
        for (int c = 0; c < 2; ++c) y[four][c] = sum_and_deal(part[c], odd, high);
    }
#pragma unroll
    for (int four = 1; four >= 0; --four) {
      float by_A[2][4], by_B[2][4];
#pragma unroll
      for (int k = 3; k >= 0; --k) {
        const int i = 4 * four + k;
        float step[4], dy[2], B[kStates], C[kStates], dB[kStates];
        load_floats(step, step_at + i * 32);
        load_floats(dy, dys_at + i * 16);
        load_floats(B, B_at + i * N);
        load_floats(C, B_at + kC + i * N);
#pragma unroll
        for (int c = 0; c < 2; ++c)
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            dh[c][n] = fmaf(dy[c], C[n], dh[c][n]);
            const float w = dh[c][n] * m[i][c][n];
            by_A[c][k] = n == 0 ? w * A[c][n] : fmaf(w, A[c][n], by_A[c][k]);
            dA[c][n] = fmaf(w, step[2 * c], dA[c][n]);
            dB[n] = c == 0 ? step[2 * c + 1] * dh[c][n] : fmaf(step[2 * c + 1], dh[c][n], dB[n]);
            by_B[c][k] = n == 0 ? B[n] * dh[c][n] : fmaf(B[n], dh[c][n], by_B[c][k]);
            dh[c][n] *= a[i][c][n];
          }
        store_floats(sums_dB + i * kSumsRow, dB);
      }
      const int t = t0 + 4 * four + q, j = j0 + t;
      const float2 x = pair(&raw.u[t][2 * group]), pre = pair(&raw.delta[t][2 * group]);
      float step[4], gated[2], du[2], ddelta[2], dz[2];
      load_floats(step, step_rows + t * 32);
      load_floats(gated, dy_rows + t * 16);
      const bool counted = kPlain ? j < length : (live >> t & 1) != 0;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float sA = sum_and_deal(by_A[c], odd, high), sB = sum_and_deal(by_B[c], odd, high);
        const float u = c == 0 ? x.x : x.y;
        step_gradients(sA, sB, u, step[2 * c], (c == 0 ? pre.x : pre.y) + bias[c], gated[c], skip[c], p.delta_softplus,
                       du[c], ddelta[c]);
        if (!kPlain && !counted) ddelta[c] = du[c] = 0;
        dskip[c] = fmaf(gated[c], kPlain || counted ? u : 0.0f, dskip[c]);
        dbias[c] += counted ? ddelta[c] : 0.0f;
      }
      if constexpr (kGate) {
        const float2 dy = pair(&raw.dy[t][2 * group]), z = pair(&raw.z[t][2 * group]);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          dz[c] = gate_gradient(c == 0 ? dy.x : dy.y, y[four][c], c == 0 ? x.x : x.y, c == 0 ? z.x : z.y, skip[c]);
          if (!kPlain && !counted) dz[c] = 0;
        }
      }
      if constexpr (kPlain) {
        const bool there = j < length && real[0];
        const auto at = [&](char* to, int stride) {
          return reinterpret_cast<T*>(to + static_cast<int64_t>(j) * (stride / kSteps));
        };
        store_pair_if(there, at(du_at, strides.du), du[0], du[1]);
        store_pair_if(there, at(ddelta_at, strides.ddelta), ddelta[0], ddelta[1]);
        if constexpr (kGate) store_pair_if(there, at(dz_at, strides.dz), dz[0], dz[1]);
      } else if (j < length) {
        const int64_t time = rows.time(j);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (!real[c]) continue;
          p.du.data[rows.b * p.du.b + time * p.du.l + (d + c) * p.du.d] = narrow<T>(du[c]);
          p.ddelta.data[rows.b * p.ddelta.b + time * p.ddelta.l + (d + c) * p.ddelta.d] = narrow<T>(ddelta[c]);
          if constexpr (kGate) p.dz.data[rows.b * p.dz.b + time * p.dz.l + (d + c) * p.dz.d] = narrow<T>(dz[c]);
        }
      }
    }
    __syncthreads();  // all warps' dB and dC of these steps are there
    if (kPairs == 32 * kWarpsEach || thread < kPairs) {
      float2 sum{0, 0};
#pragma unroll
      for (int w = 0; w < kWarpsEach; ++w)
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const float2 v = *reinterpret_cast<const float2*>((k < 7 ? pair_rotated + k * N : pair_last) + 8 * w * N);
          sum.x += v.x;
          sum.y += v.y;
        }
      const int j = j0 + t0 + pair_t;
      store_pair_if(j < length, dBC_at + (rows.b * p.layout.length + rows.time(j)) * 2 * N, sum.x, sum.y);
    }
    __syncthreads();  // they have been added
  };

  load(chunks - 1, mine.raw[(chunks - 1) & 1]);
  for (int chunk = chunks - 1; chunk >= 0; --chunk) {
    const int j0 = chunk * kSteps, count = min(length - j0, kSteps);
    const typename Tiles::Raw& raw = mine.raw[chunk & 1];
    __syncwarp();  // the other stage has been used
    load(chunk - 1, mine.raw[(chunk - 1) & 1]);
    wait_copies<1>();
    unsigned live = (1u << count) - 1;
    if constexpr (!kPlain)
      if (p.layout.mask.data != nullptr)
        live = __ballot_sync(kAllLanes, lane < count && counts(p.layout.mask, rows.b, rows.time(j0 + lane)));
    __syncwarp();
    prepare(raw, live);
    __syncwarp();
    // One body for both halves: twice the code would not fit into the instruction cache.
#pragma unroll 1
    for (int t0 = count > kHalf ? kHalf : 0; t0 >= 0; t0 -= kHalf) {
      float h[2][kStates];
#pragma unroll
      for (int c = 0; c < 2; ++c) load_floats(h[c], &raw.saved[2 * group + c][q * kStates]);
      if (t0 > 0) {
#pragma unroll
        for (int t = 0; t < kHalf; ++t) {
          float step[4], B[kStates];
          load_floats(step, step_rows + t * 32);
          load_floats(B, B_rows + t * N);
#pragma unroll
          for (int c = 0; c < 2; ++c)
#pragma unroll
            for (int n = 0; n < kStates; ++n)
              h[c][n] = fmaf(step[2 * c + 1], B[n], exp2_fast(step[2 * c] * A[c][n]) * h[c][n]);
        }
      }
      half(raw, j0, t0, live, h);
    }
  }
  wait_copies<0>();
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (!real[c]) continue;
    store_floats(out.A_sum(row, N, d + c) + q * kStates, dA[c]);
    if (p.dinitial_state != nullptr && part == 0)
      store_floats(&p.dinitial_state[(s * p.channels + d + c) * N + q * kStates], dh[c]);
  }
  // Lanes q hold different steps' sums of the same channels.
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    dskip[c] = sum_lanes(dskip[c], 4);
    dbias[c] = sum_lanes(dbias[c], 4);
    if (q == 0 && real[c]) {
      float* const to = out.skip_sum(row, p.channels, N, d + c);
      to[0] = dskip[c];
      to[p.channels] = dbias[c];
    }
  }
}

}  // namespace adder::kernels::cuda
