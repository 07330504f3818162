#include <iterator>

#include "adder/kernels/scan_step_tiles.cuh"

namespace adder::kernels::cuda {
namespace {

// Real states, Euler, B and C per step. A warp owns 8 kC channels: lane / 4 has kC of them, lane % 4 a quarter of their
// N states, which stay in registers while the warp walks through time. Tiles go through three states, one behind the
// other: on their way into shared memory, being prepared (softplus, delta u, B and C as floats), being scanned. All
// three and the end of the steps before are interleaved in one body without branches, since few warps share a
// scheduler.
template <typename T, int N, int kC>
struct ForwardTiles {
  static constexpr int kSteps = 16, kChannels = 8 * kC, kStates = N / 4;
  struct Raw {
    T delta[kSteps][kChannels], u[kSteps][kChannels], z[kSteps][kChannels], BC[2][kSteps][N];
  };
  struct Ready {
    float step[kSteps][8][2 * kC];  // {delta, delta u} of each of kC channels
    float BC[2][kSteps][N];
  };
  Raw raw[3];
  Ready ready[2];
};

// kPiece: what plain_piece() says, or kStepsSideBySide. What the latter changes is which values a lane copies, prepares
// and finishes; the sums are the same, and in the same order.
template <typename T, int N, int kC, bool kGate, int kPiece, int kWarpsEach, int kBlocks>
__global__ void __launch_bounds__(32 * kWarpsEach, kBlocks)
    fast_forward(const __grid_constant__ SelectiveScanForward<T> p, const TileStrides strides, const ScanParts parts) {
  using Tiles = ForwardTiles<T, N, kC>;
  constexpr bool kPlain = kPiece != 0, kBySteps = kPiece == kStepsSideBySide;
  constexpr int kSteps = Tiles::kSteps, kChannels = Tiles::kChannels, kStates = Tiles::kStates;
  static_assert(!kBySteps || (kC == 2 && kSteps == kTileSteps && kChannels == kSteps));
  extern __shared__ __align__(16) char shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, q = lane % 4, group = lane / 4;
  const bool odd = lane & 1, high = lane & 2;
  Tiles& tiles = reinterpret_cast<Tiles*>(shared)[threadIdx.x / 32];
  const int64_t group_channels = p.channels / p.groups, group_tiles = (group_channels + kChannels - 1) / kChannels;
  const int64_t all_tiles = group_tiles * p.groups;
  int64_t task = blockIdx.x * static_cast<int64_t>(kWarpsEach) + threadIdx.x / 32;
  if (task >= p.layout.sequences * all_tiles * parts.count) return;
  const int64_t tile = task % all_tiles, g = tile / group_tiles;
  task /= all_tiles;
  const int64_t s = task % p.layout.sequences, piece = task / p.layout.sequences;
  const int64_t d0 = g * group_channels + tile % group_tiles * kChannels;
  const int columns = static_cast<int>(min(static_cast<int64_t>(kChannels), (g + 1) * group_channels - d0));
  SequenceRows rows(p.layout, s);
  if (piece > 0 && piece * parts.steps >= rows.length) return;
  const bool last_part = (piece + 1) * parts.steps >= rows.length;
  rows.cut(piece * parts.steps, parts.steps);
  const float* const begin = piece == 0 ? p.initial_state : parts.begins + piece * p.layout.sequences * p.channels * N;
  const int length = static_cast<int>(rows.length), all_steps = (length + kSteps - 1) / kSteps * kSteps;

  const int64_t d = d0 + kC * group;  // this lane's first channel
  bool real[kC];
  float A[kC][kStates], h[kC][kStates], skip[kC];
#pragma unroll
  for (int c = 0; c < kC; ++c) {
    real[c] = kC * group + c < columns;
    skip[c] = real[c] && p.D.data != nullptr ? p.D.data[(d + c) * p.D.d] : 0.0f;
#pragma unroll
    for (int n = 0; n < kStates; ++n) {
      A[c][n] = real[c] ? kLog2E * p.A.data[(d + c) * p.A.row + (q * kStates + n) * p.A.column] : 0.0f;
      h[c][n] = real[c] && begin != nullptr ? begin[(s * p.channels + d + c) * N + q * kStates + n] : 0.0f;
    }
  }
  // The channels whose delta and u it prepares: other ones, so that a row is stored side by side.
  const int own = lane % 8, own_row = lane % 16;
  float bias[kBySteps ? 1 : kC];
#pragma unroll
  for (int c = 0; c < static_cast<int>(std::size(bias)); ++c) {
    const int channel = kBySteps ? own_row : kC * own + c;
    bias[c] =
        channel < columns && p.delta_bias.data != nullptr ? p.delta_bias.data[(d0 + channel) * p.delta_bias.d] : 0.0f;
  }

  const auto first_channel = [&](const View3<const T>& v) {
    return v.data + rows.b * v.b + rows.first * v.l + d0 * v.d;
  };
  const auto first_state = [&](const View4<const T>& v) { return v.data + rows.b * v.b + rows.first * v.l + g * v.g; };
  using ChannelCopy = std::conditional_t<kBySteps, StepTileCopy<T, kChannels>, TileCopy<T, kSteps, kChannels>>;
  using StateCopy =
      std::conditional_t<kBySteps, StepTileCopy<T, N>, TileCopy<T, kSteps, N, (kPiece > 0 ? kPiece : 16)>>;
  const auto row_stride = [&](const auto& v, int64_t other) { return kBySteps ? other : rows.step * v.l; };
  const ChannelCopy copy_delta(first_channel(p.delta), row_stride(p.delta, p.delta.d), columns, lane);
  const ChannelCopy copy_u(first_channel(p.u), row_stride(p.u, p.u.d), columns, lane);
  const ChannelCopy copy_z(kGate ? first_channel(p.z) : nullptr, kGate ? row_stride(p.z, p.z.d) : 0, columns, lane);
  const StateCopy copy_B(first_state(p.B_step), row_stride(p.B_step, p.B_step.n), N, lane);
  const StateCopy copy_C(first_state(p.C_step), row_stride(p.C_step, p.C_step.n), N, lane);
  const auto load = [&](int j0, typename Tiles::Raw& to) {
    const int tile = j0 / kSteps, count = min(length - j0, kSteps);
    if constexpr (kBySteps) {
      if (j0 < length) {
        copy_delta.start(to.delta, j0, count, lane);
        copy_u.start(to.u, j0, count, lane);
        if constexpr (kGate) copy_z.start(to.z, j0, count, lane);
        copy_B.start(rows_of_steps(to.BC[0]), j0, count, lane);
        copy_C.start(rows_of_steps(to.BC[1]), j0, count, lane);
      }
      end_copies();
    } else if constexpr (kPlain) {
      if (j0 < length) {
        copy_delta.start(to.delta, tile, strides.delta, strides.delta / kSteps, count, lane);
        copy_u.start(to.u, tile, strides.u, strides.u / kSteps, count, lane);
        if constexpr (kGate) copy_z.start(to.z, tile, strides.z, strides.z / kSteps, count, lane);
        copy_B.start(to.BC[0], tile, strides.B, strides.B / kSteps, count, lane);
        copy_C.start(to.BC[1], tile, strides.C, strides.C / kSteps, count, lane);
      }
      end_copies();
    } else if (j0 < length) {
      const auto channels = [&](T(*to_rows)[kChannels], const View3<const T>& v) {
        copy_values<T, kSteps, kChannels>(to_rows, first_channel(v) + j0 * rows.step * v.l, rows.step * v.l, v.d, count,
                                          columns, lane);
      };
      const auto states = [&](T(*to_rows)[N], const View4<const T>& v) {
        copy_values<T, kSteps, N>(to_rows, first_state(v) + j0 * rows.step * v.l, rows.step * v.l, v.n, count, N, lane);
      };
      channels(to.delta, p.delta);
      channels(to.u, p.u);
      if constexpr (kGate) channels(to.z, p.z);
      states(to.BC[0], p.B_step);
      states(to.BC[1], p.C_step);
    }
  };
  // Which of the steps from j0 on count: those of the sequence that the mask does not leave out.
  const auto live_steps = [&](int j0) {
    const int count = max(min(length - j0, kSteps), 0);
    if constexpr (!kPlain)
      if (p.layout.mask.data != nullptr)
        return __ballot_sync(kAllLanes, lane < count && counts(p.layout.mask, rows.b, rows.time(j0 + lane)));
    return (1u << count) - 1;
  };
  // Four steps' share of a tile: delta and u of kC channels of a step, B or C of a quarter of a step's states.
  const auto prepare = [&](const typename Tiles::Raw& from, typename Tiles::Ready& to, int i, unsigned live) {
    if constexpr (kBySteps) {
      const TwoSteps<T> two(from.delta, from.u, bias[0], p.delta_softplus, i, lane);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const bool counted = live >> (two.step + k) & 1;
        store_floats(&to.step[two.step + k][own_row / 2][own_row % 2 * 2],
                     {counted ? two.delta[k] : 0.0f, counted ? two.input[k] : 0.0f});
      }
#pragma unroll
      for (int row = own_row; row < 2 * N; row += 16) {
        const float2 v = two_steps(rows_of_steps(from.BC[0])[row], own_row, two.step);
        to.BC[row / N][two.step][row % N] = v.x;
        to.BC[row / N][two.step + 1][row % N] = v.y;
      }
    } else {
      const int t = 4 * i + lane / 8;
      const bool counted = live >> t & 1;
      Packed<T, kC> delta_bits, u_bits;
      delta_bits.load(&from.delta[t][kC * own]);
      u_bits.load(&from.u[t][kC * own]);
      float dt[kC], x[kC], step[2 * kC];
      delta_bits.floats(dt);
      u_bits.floats(x);
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        dt[c] += bias[kBySteps ? 0 : c];
        const float soft = softplus_fast(dt[c]);
        dt[c] = p.delta_softplus ? soft : dt[c];
        step[2 * c] = counted ? dt[c] : 0.0f;
        step[2 * c + 1] = counted ? dt[c] * x[c] : 0.0f;
      }
      store_floats(to.step[t][own], step);
      const int t_BC = 4 * i + lane % 16 / 4;
      float v[kStates];
      Packed<T, kStates * sizeof(T) <= 16 ? kStates : 1> bits;
      static_assert(kStates * sizeof(T) <= 16);
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

  // Outputs come four steps late, one step a lane; or two of one channel.
  const int out_row = kC * group + q % 2, out_step = q / 2 * 2;
  char* const y = reinterpret_cast<char*>(
      p.y.data + rows.b * p.y.b +
      (kBySteps ? rows.first + out_step - 4 + (d0 + out_row) * p.y.d : rows.time(q - 4) * p.y.l + d * p.y.d));
  float part[kC][4] = {};
  Packed<T, kC> u_bits{}, z_bits{};
  unsigned live = 0;
  const auto finish = [&](int j0, int t_live) {
    float out[kC], x[kC], z[kC];
    u_bits.floats(x);
    if constexpr (kGate) z_bits.floats(z);
    const int j = j0 - 4 + (kBySteps ? out_step : q);
    const bool there = j >= 0 && j < length;
    if constexpr (kBySteps) {
      sum_and_deal_pairs(out, part, odd, high);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        out[k] = fmaf(odd ? skip[1] : skip[0], x[k], out[k]);
        if constexpr (kGate) out[k] *= z[k] * sigmoid_fast(z[k]);
      }
      store_pair_if(there && out_row < columns, reinterpret_cast<T*>(y) + j0, out[0], out[1]);
    } else {
#pragma unroll
      for (int c = 0; c < kC; ++c) {
        out[c] = fmaf(skip[c], x[c], sum_and_deal(part[c], odd, high));
        if constexpr (kGate) out[c] *= z[c] * sigmoid_fast(z[c]);
      }
      if constexpr (kPlain) {
        T* const at = reinterpret_cast<T*>(y + static_cast<int64_t>(j0 / 4) * (strides.y / (kSteps / 4)));
        if constexpr (kC == 2)
          store_pair_if(there && real[0], at, out[0], out[1]);
        else if (there && real[0])
          *at = narrow<T>(out[0]);
      } else {
        T* const at = p.y.data + rows.b * p.y.b + rows.time(j) * p.y.l + d * p.y.d;
#pragma unroll
        for (int c = 0; c < kC; ++c)
          if (there && real[c]) at[c * p.y.d] = narrow<T>((live >> t_live & 1) != 0 ? out[c] : 0.0f);
      }
    }
  };

  load(0, tiles.raw[0]);
  load(kSteps, tiles.raw[1]);
  wait_copies<1>();
  __syncwarp();
  unsigned next_live = live_steps(0);
#pragma unroll
  for (int i = 0; i < kSteps / 4; ++i) prepare(tiles.raw[0], tiles.ready[0], i, next_live);
  int stage = 0;
  for (int j0 = 0; j0 < length; j0 += kSteps) {
    const typename Tiles::Raw& now = tiles.raw[stage];
    stage = stage == 2 ? 0 : stage + 1;
    const typename Tiles::Raw& next = tiles.raw[stage];
    typename Tiles::Raw& after = tiles.raw[stage == 2 ? 0 : stage + 1];
    const typename Tiles::Ready& ready = tiles.ready[j0 / kSteps % 2];
    typename Tiles::Ready& ready_next = tiles.ready[(j0 / kSteps + 1) % 2];
    wait_copies<0>();
    __syncwarp();  // what other lanes have prepared and copied is seen; the stage before is free
    load(j0 + 2 * kSteps, after);
    const unsigned now_live = next_live;
    next_live = live_steps(j0 + kSteps);
    if (p.border_states != nullptr && j0 % kCudaScanChunk == 0)
#pragma unroll
      for (int c = 0; c < kC; ++c)
        store_floats_if(real[c],
                        &p.border_states[((rows.chunk + j0 / kCudaScanChunk) * p.channels + d + c) * N + q * kStates],
                        h[c]);
#pragma unroll
    for (int i = 0; i < kSteps / 4; ++i) {
      finish(j0 + 4 * i, (4 * i + kSteps - 4 + q) % kSteps);
      if (i == 0) live = now_live;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int t = 4 * i + k;
        float step[2 * kC], B[kStates], C[kStates];
        load_floats(step, ready.step[t][group]);
        load_floats(B, &ready.BC[0][t][q * kStates]);
        load_floats(C, &ready.BC[1][t][q * kStates]);
#pragma unroll
        for (int c = 0; c < kC; ++c)
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            h[c][n] = fmaf(exp2_fast(step[2 * c] * A[c][n]), h[c][n], step[2 * c + 1] * B[n]);
            part[c][k] = n == 0 ? C[n] * h[c][n] : fmaf(C[n], h[c][n], part[c][k]);
          }
      }
      const int bits_row = kBySteps ? out_row : 4 * i + q,
                bits_column = kBySteps ? (4 * i + out_step) ^ half_swap(out_row) : kC * group;
      u_bits.load(&now.u[bits_row][bits_column]);
      if constexpr (kGate) z_bits.load(&now.z[bits_row][bits_column]);
      prepare(next, ready_next, i, next_live);
    }
  }
  finish(all_steps, kSteps - 4 + q);
  wait_copies<0>();
#pragma unroll
  for (int c = 0; c < kC; ++c)
    if (real[c] && last_part) store_floats(&p.final_state[(s * p.channels + d + c) * N + q * kStates], h[c]);
}

constexpr int kWarps = 4, kChannelsEach = 2;

template <typename T>
int piece_of(const SelectiveScanForward<T>& p) {
  if (steps_are_plain(p) && copies_by(16, p.y.data, {p.y.b, p.y.d}, p.y.l)) return kStepsSideBySide;
  const bool plain = p.y.d == 1 && reinterpret_cast<uintptr_t>(p.y.data) % 8 == 0 && p.y.b % 2 == 0 && p.y.l % 2 == 0;
  return plain && is_near<T>(p.y.l) ? plain_piece(p) : 0;
}

template <typename T, int N, bool kGate, int kPiece>
void launch(const SelectiveScanForward<T>& p, const ScanParts& parts, CudaStream stream) {
  using Tiles = ForwardTiles<T, N, kChannelsEach>;
  constexpr int kShared = static_cast<int>(sizeof(Tiles)) * kWarps;
  const int64_t group_channels = p.channels / p.groups;
  const int64_t tiles = p.groups * ((group_channels + Tiles::kChannels - 1) / Tiles::kChannels);
  const int64_t tasks = p.layout.sequences * tiles * parts.count;
  if (tasks == 0) return;
  // Shared memory has room for three blocks. Where there is work for two, they may have more registers each.
  auto kernel = fast_forward<T, N, kChannelsEach, kGate, kPiece, kWarps, 2>;
  if constexpr (kPiece != 0)
    if (tasks > 2 * kWarps * processor_count()) kernel = fast_forward<T, N, kChannelsEach, kGate, kPiece, kWarps, 3>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "selective_scan, forward");
  const int64_t direction = p.layout.reverse ? -1 : 1,
                bytes = direction * Tiles::kSteps * static_cast<int64_t>(sizeof(T));
  const auto stride = [&](int64_t l) { return static_cast<int>(bytes * l); };
  TileStrides strides{};
  if constexpr (kPiece > 0)
    strides = {stride(p.u.l), stride(p.delta.l), stride(p.z.l), stride(p.B_step.l), stride(p.C_step.l), stride(p.y.l)};
  kernel<<<static_cast<unsigned>((tasks + kWarps - 1) / kWarps), 32 * kWarps, kShared, stream>>>(p, strides, parts);
  check_launch("selective_scan, fast forward");
}

template <typename T, int N>
void launch(const SelectiveScanForward<T>& p, const ScanParts& parts, CudaStream stream) {
  const auto run = [&]<bool kGate, int kPiece>() { launch<T, N, kGate, kPiece>(p, parts, stream); };
  const int piece = piece_of(p);
  if (piece != kStepsSideBySide) return with_gate_and_piece(p.z.data != nullptr, piece, run);
  p.z.data != nullptr ? run.template operator()<true, kStepsSideBySide>()
                      : run.template operator()<false, kStepsSideBySide>();
}

}  // namespace

template <typename T>
bool selective_scan_takes_steps(const SelectiveScanInputs<T>& p) {
  return choose_scan(p, false) == ScanAlgorithm::kFast && steps_are_plain(p);
}

template <typename T>
void selective_scan_forward_fast(const SelectiveScanForward<T>& p, CudaStream stream) {
  ScanParts parts = scan_parts<T>(p, false);
  parts.begins = static_cast<const float*>(p.workspace);
  if (parts.count > 1) find_part_states(p, parts, p.workspace, stream);
  p.state == 8 ? launch<T, 8>(p, parts, stream) : launch<T, 16>(p, parts, stream);
}

#define ADDER_INSTANTIATE(T)                                               \
  template bool selective_scan_takes_steps(const SelectiveScanInputs<T>&); \
  template void selective_scan_forward_fast(const SelectiveScanForward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
