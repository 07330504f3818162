#include "adder/kernels/scan_step_tiles.cuh"

// Sequences are cut into parts that are scanned side by side. What a part begins with is found first, from the parts
// before it (in the backward pass: after it): a walk away from the border adds up what each step still contributes
// there, weighted by the decay between. It ends where nothing of float32 is left, which long parts have long before
// their other end. What lies beyond does not come through then, a NaN neither.
namespace adder::kernels::cuda {
namespace {

constexpr int kWarps = 4;
// A weight of 2^-100 leaves no trace in a float32 sum beside anything of the same size.
constexpr float kForgotten = -100.0f;

template <typename T, int N>
struct BorderTiles {
  static constexpr int kSteps = 16, kWarpChannels = 16, kChannels = kWarps * kWarpChannels;
  struct Raw {
    T delta[kSteps][kWarpChannels], x[kSteps][kWarpChannels], z[kSteps][kWarpChannels], matrix[kSteps][N];
  };
  struct Ready {
    float step[kSteps][kChannels][2];  // {delta, input}
    float matrix[kSteps][N];
  };
  Raw raw[kWarps][2];
  Ready ready[2];
};

// Forward: the state that a part leaves behind if it begins with zeros, x = u, matrix = B. Backward: the gradient of
// the state before a part if none comes from behind it, x = dy silu(z), matrix = C. Beside it the decay over the part.
// A warp prepares 16 of the block's 64 channels and walks with a quarter of the states of all of them: quarters differ
// most in how soon they forget.
template <typename T, int N, bool kBackward, bool kGate, int kPiece>
__global__ void __launch_bounds__(32 * kWarps)
    walk_from_borders(const __grid_constant__ SelectiveScanInputs<T> p, const View3<const T> x,
                      const View4<const T> matrix, const ScanParts parts, float* sums, float* decays) {
  using Tiles = BorderTiles<T, N>;
  constexpr bool kPlain = kPiece != 0, kBySteps = kPiece == kStepsSideBySide;
  static_assert(!kBySteps || (!kBackward && Tiles::kSteps == kTileSteps && Tiles::kWarpChannels == kTileSteps));
  constexpr int kSteps = Tiles::kSteps, kWarpChannels = Tiles::kWarpChannels, kChannels = Tiles::kChannels;
  constexpr int kStates = N / 4;
  extern __shared__ __align__(16) char shared[];
  Tiles& tiles = *reinterpret_cast<Tiles*>(shared);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32, own = lane % 8;
  const int64_t group_channels = p.channels / p.groups, group_tiles = (group_channels + kChannels - 1) / kChannels;
  const int64_t all_tiles = group_tiles * p.groups;
  int64_t task = blockIdx.x;
  const int64_t g = task % all_tiles / group_tiles;
  const int64_t d0 = g * group_channels + task % all_tiles % group_tiles * kChannels;
  task /= all_tiles;
  const int64_t s = task % p.layout.sequences, part = task / p.layout.sequences + (kBackward ? 1 : 0);
  SequenceRows rows(p.layout, s);
  rows.cut(part * parts.steps, parts.steps);
  if (!kBackward) {  // away from the border
    rows.first = rows.time(rows.length - 1);
    rows.step = -rows.step;
  }
  const int length = static_cast<int>(rows.length);

  const int64_t d = d0 + 2 * lane;  // the first of the channels that this lane walks with
  bool real[2];
  float A[2][kStates], sum[2][kStates] = {}, way[2] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    real[c] = d + c < (g + 1) * group_channels;
    const float* const from = p.A.data + (real[c] ? d + c : d0) * p.A.row + warp * kStates * p.A.column;
    if (p.A.column == 1 && p.A.row % 4 == 0 && reinterpret_cast<uintptr_t>(p.A.data) % 16 == 0)
      load_floats(A[c], from);
    else
      for (int n = 0; n < kStates; ++n) A[c][n] = from[n * p.A.column];
#pragma unroll
    for (int n = 0; n < kStates; ++n) A[c][n] = real[c] ? kLog2E * A[c][n] : 0.0f;
  }
  // The channels that this warp copies and prepares.
  const int64_t first = d0 + warp * kWarpChannels;
  const int columns =
      static_cast<int>(max(min(static_cast<int64_t>(kWarpChannels), (g + 1) * group_channels - first), int64_t{0}));
  float own_bias[2];
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = kBySteps ? lane % 16 : 2 * own + c;
    own_bias[c] = channel < columns && p.delta_bias.data != nullptr
                      ? p.delta_bias.data[(first + channel) * p.delta_bias.d]
                      : 0.0f;
  }
  // Steps side by side: the part is walked from its end, in tiles that begin at their first step in time.
  const int64_t first_step = kBySteps ? rows.first - (kSteps - 1) : rows.first;
  const auto first_channel = [&](const View3<const T>& v) {
    return v.data + rows.b * v.b + first_step * v.l + (columns > 0 ? first : d0) * v.d;
  };
  const T* const first_state = matrix.data + rows.b * matrix.b + first_step * matrix.l + g * matrix.g;
  using ChannelCopy = std::conditional_t<kBySteps, StepTileCopy<T, kWarpChannels>, TileCopy<T, kSteps, kWarpChannels>>;
  using StateCopy =
      std::conditional_t<kBySteps, StepTileCopy<T, N>, TileCopy<T, kSteps, N, (kPiece > 0 ? kPiece : 16)>>;
  const auto row_stride = [&](const auto& v, int64_t other) { return kBySteps ? other : rows.step * v.l; };
  const ChannelCopy copy_delta(first_channel(p.delta), row_stride(p.delta, p.delta.d), columns, lane);
  const ChannelCopy copy_x(first_channel(x), row_stride(x, x.d), columns, lane);
  const ChannelCopy copy_z(kGate ? first_channel(p.z) : nullptr, kGate ? rows.step * p.z.l : 0, columns, lane);
  const StateCopy copy_matrix(first_state, row_stride(matrix, matrix.n), N, lane);
  const auto load = [&](int j0, typename Tiles::Raw& to) {
    const int tile = j0 / kSteps, count = min(length - j0, kSteps);
    if (j0 < length) {
      if constexpr (kBySteps) {
        copy_delta.start(to.delta, -j0, kSteps, lane);
        copy_x.start(to.x, -j0, kSteps, lane);
        if (warp == 0) copy_matrix.start(rows_of_steps(to.matrix), -j0, kSteps, lane);
      } else if constexpr (kPlain) {
        const auto start = [&](const auto& copy, auto& rows_to, int64_t l) {
          const int row = static_cast<int>(rows.step * l * static_cast<int64_t>(sizeof(T)));
          copy.start(rows_to, tile, row * kSteps, row, count, lane);
        };
        start(copy_delta, to.delta, p.delta.l);
        start(copy_x, to.x, x.l);
        if constexpr (kGate) start(copy_z, to.z, p.z.l);
        if (warp == 0) start(copy_matrix, to.matrix, matrix.l);
      } else {
        const auto channels = [&](T(*to_rows)[kWarpChannels], const View3<const T>& v) {
          copy_values<T, kSteps, kWarpChannels>(to_rows, first_channel(v) + j0 * rows.step * v.l, rows.step * v.l, v.d,
                                                count, columns, lane);
        };
        channels(to.delta, p.delta);
        channels(to.x, x);
        if constexpr (kGate) channels(to.z, p.z);
        if (warp == 0)
          copy_values<T, kSteps, N>(to.matrix, first_state + j0 * rows.step * matrix.l, rows.step * matrix.l, matrix.n,
                                    count, N, lane);
      }
    }
    end_copies();
  };
  const auto prepare = [&](const typename Tiles::Raw& from, typename Tiles::Ready& to, unsigned live) {
    if constexpr (kBySteps) {
#pragma unroll
      for (int i = 0; i < kSteps / 4; ++i) {
        const TwoSteps<T> two(from.delta, from.x, own_bias[0], p.delta_softplus, i, lane);
#pragma unroll
        for (int k = 0; k < 2; ++k)
          store_floats(to.step[kSteps - 1 - two.step - k][warp * kWarpChannels + two.row],
                       {two.delta[k], two.input[k]});
      }
      if (warp == 0)
#pragma unroll
        for (int i = lane; i < N * kSteps / 2; i += 32) {
          const int n = i % N, at = i / N * 2;
          const float2 v = two_steps(rows_of_steps(from.matrix)[n], n, at);
          to.matrix[kSteps - 1 - at][n] = v.x;
          to.matrix[kSteps - 2 - at][n] = v.y;
        }
    } else {
#pragma unroll
      for (int i = 0; i < kSteps / 4; ++i) {
        const int t = 4 * i + lane / 8;
        const bool counted = live >> t & 1;
        const float2 raw = pair(&from.delta[t][2 * own]);
        float2 in = pair(&from.x[t][2 * own]);
        float dt[2] = {raw.x + own_bias[0], raw.y + own_bias[1]};
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float soft = softplus_fast(dt[c]);
          dt[c] = p.delta_softplus ? soft : dt[c];
        }
        if constexpr (!kBackward) {
          in.x *= dt[0];
          in.y *= dt[1];
        } else if constexpr (kGate) {
          const float2 z = pair(&from.z[t][2 * own]);
          in.x *= z.x * sigmoid_fast(z.x);
          in.y *= z.y * sigmoid_fast(z.y);
        }
        *reinterpret_cast<float4*>(to.step[t][warp * kWarpChannels + 2 * own]) =
            counted ? float4{dt[0], in.x, dt[1], in.y} : float4{0, 0, 0, 0};
      }
      if (warp > 0) return;
#pragma unroll
      for (int i = lane; i < kSteps * 4; i += 32) {
        const int t = i / 4;
        float v[kStates];
        Packed<T, kStates> bits;
        bits.load(&from.matrix[t][i % 4 * kStates]);
        bits.floats(v);
        if constexpr (!kPlain) {
          const bool counted = live >> t & 1;
#pragma unroll
          for (int n = 0; n < kStates; ++n) v[n] = counted ? v[n] : 0.0f;
        }
        store_floats(&to.matrix[t][i % 4 * kStates], v);
      }
    }
  };

  // Weights only fall if no delta is negative.
  bool forgotten = false, stopped = false;
  load(0, tiles.raw[warp][0]);
  for (int j0 = 0; j0 < length; j0 += kSteps) {
    const int parity = j0 / kSteps % 2, count = min(length - j0, kSteps);
    __syncwarp();
    load(j0 + kSteps, tiles.raw[warp][parity ^ 1]);
    wait_copies<1>();
    unsigned live = (1u << count) - 1;
    if constexpr (!kPlain)
      if (p.layout.mask.data != nullptr)
        live = __ballot_sync(kAllLanes, lane < count && counts(p.layout.mask, rows.b, rows.time(j0 + lane)));
    __syncwarp();
    prepare(tiles.raw[warp][parity], tiles.ready[parity], live);
    // What all have prepared is there; what they prepare next goes where none is at work any more.
    stopped = forgotten;
    if (__syncthreads_and(forgotten)) break;
    if (forgotten) continue;
    const typename Tiles::Ready& ready = tiles.ready[parity];
#pragma unroll 4
    for (int t = 0; t < kSteps; ++t) {
      float step[4], M[kStates];
      load_floats(step, ready.step[t][2 * lane]);
      load_floats(M, &ready.matrix[t][warp * kStates]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if constexpr (kBackward) way[c] += step[2 * c];
#pragma unroll
        for (int n = 0; n < kStates; ++n)
          sum[c][n] = fmaf(exp2_fast(A[c][n] * way[c]), step[2 * c + 1] * M[n], sum[c][n]);
        if constexpr (!kBackward) way[c] += step[2 * c];
      }
    }
    bool mine = p.delta_softplus;
#pragma unroll
    for (int c = 0; c < 2; ++c)
#pragma unroll
      for (int n = 0; n < kStates; ++n) mine = mine && (!real[c] || A[c][n] * way[c] < kForgotten);
    forgotten = __all_sync(kAllLanes, mine);
  }
  wait_copies<0>();
  // Through shared memory, so that a channel's states are written side by side.
  constexpr int kRow = N + 4;
  float(*const out)[kChannels][kRow] = reinterpret_cast<float(*)[kChannels][kRow]>(tiles.ready);
  static_assert(2 * sizeof(out[0]) <= sizeof(tiles.ready));
  __syncthreads();  // all are done with the tiles
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float decay[kStates];
#pragma unroll
    for (int n = 0; n < kStates; ++n) decay[n] = stopped ? 0.0f : exp2_fast(A[c][n] * way[c]);
    store_floats(&out[0][2 * lane + c][warp * kStates], sum[c]);
    store_floats(&out[1][2 * lane + c][warp * kStates], decay);
  }
  __syncthreads();
  const int64_t base = ((part * p.layout.sequences + s) * p.channels + d0) * N;
  for (int i = 4 * static_cast<int>(threadIdx.x); i < kChannels * N; i += 4 * 32 * kWarps) {
    if (d0 + i / N >= (g + 1) * group_channels) break;
    float v[4];
    load_floats(v, &out[0][i / N][i % N]);
    store_floats(&sums[base + i], v);
    load_floats(v, &out[1][i / N][i % N]);
    store_floats(&decays[base + i], v);
  }
}

// What is multiplied by nothing does not come through, an infinity neither.
__device__ __forceinline__ float decayed(float decay, float state) {
  return decay == 0.0f || state == 0.0f ? 0.0f : decay * state;
}

// Passes on what each part begins with: in time, or against it. A thread takes some parts that follow one another, the
// threads of a column (threadIdx.y) all parts of one state.
__global__ void __launch_bounds__(1024) pass_on(const float* first, int64_t states, int64_t count, bool backward,
                                                const float* decays, const float* sums, float* begins) {
  __shared__ float decay_of[32][32], sum_of[32][32];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t i = blockIdx.x * int64_t{32} + x, each = (count - 2 + blockDim.y) / blockDim.y;
  const int64_t begin = y * each, end = i < states ? min(begin + each, count - 1) : begin;
  const auto at = [&](int64_t k) { return (backward ? count - 1 - k : k) * states + i; };
  float decay = 1, sum = 0;
#pragma unroll 4
  for (int64_t k = begin; k < end; ++k) {
    const float part = decays[at(k)];
    sum = sums[at(k)] + decayed(part, sum);
    decay = decayed(part, decay);
  }
  decay_of[y][x] = decay;
  sum_of[y][x] = sum;
  __syncthreads();
  float state = first != nullptr && i < states ? first[i] : 0.0f;
  for (int w = 0; w < y; ++w) state = sum_of[w][x] + decayed(decay_of[w][x], state);
#pragma unroll 4
  for (int64_t k = begin; k < end; ++k) {
    state = sums[at(k)] + decayed(decays[at(k)], state);
    begins[at(k + 1)] = state;
  }
}

template <typename T, int N, bool kBackward, bool kGate>
void walk(const SelectiveScanInputs<T>& p, const View3<const T>& x, const View4<const T>& matrix, int piece,
          const ScanParts& parts, float* sums, float* decays, CudaStream stream) {
  using Tiles = BorderTiles<T, N>;
  constexpr int kShared = static_cast<int>(sizeof(Tiles));
  const int64_t tiles = (p.channels / p.groups + Tiles::kChannels - 1) / Tiles::kChannels * p.groups;
  const auto blocks = static_cast<unsigned>(p.layout.sequences * tiles * (parts.count - 1));
  auto kernel = piece == 16  ? walk_from_borders<T, N, kBackward, kGate, 16>
                : piece == 4 ? walk_from_borders<T, N, kBackward, kGate, 4>
                             : walk_from_borders<T, N, kBackward, kGate, 0>;
  if constexpr (!kBackward)
    if (piece == kStepsSideBySide) kernel = walk_from_borders<T, N, kBackward, kGate, kStepsSideBySide>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "selective_scan, borders");
  kernel<<<blocks, 32 * kWarps, kShared, stream>>>(p, x, matrix, parts, sums, decays);
  check_launch("selective_scan, borders of parts");
}

template <typename T>
void find(const SelectiveScanInputs<T>& p, const View3<const T>* dy, const float* first, const ScanParts& parts,
          void* workspace, CudaStream stream) {
  const int64_t states = p.layout.sequences * p.channels * p.state;
  float* const begins = static_cast<float*>(workspace);
  float *const sums = begins + parts.count * states, *const decays = sums + parts.count * states;
  int piece = dy == nullptr && steps_are_plain(p) ? kStepsSideBySide : plain_piece(p);
  if (dy != nullptr) {
    if (!rows_are_plain(*dy)) piece = 0;
    if (p.z.data != nullptr)
      p.state == 8 ? walk<T, 8, true, true>(p, *dy, p.C_step, piece, parts, sums, decays, stream)
                   : walk<T, 16, true, true>(p, *dy, p.C_step, piece, parts, sums, decays, stream);
    else
      p.state == 8 ? walk<T, 8, true, false>(p, *dy, p.C_step, piece, parts, sums, decays, stream)
                   : walk<T, 16, true, false>(p, *dy, p.C_step, piece, parts, sums, decays, stream);
  } else {
    p.state == 8 ? walk<T, 8, false, false>(p, p.u, p.B_step, piece, parts, sums, decays, stream)
                 : walk<T, 16, false, false>(p, p.u, p.B_step, piece, parts, sums, decays, stream);
  }
  const dim3 threads(32, static_cast<unsigned>(std::min<int64_t>(parts.count - 1, 32)));
  pass_on<<<static_cast<unsigned>((states + 31) / 32), threads, 0, stream>>>(first, states, parts.count, dy != nullptr,
                                                                             decays, sums, begins);
  check_launch("selective_scan, states of parts");
}

}  // namespace

template <typename T>
ScanParts scan_parts(const SelectiveScanInputs<T>& p, bool backward) {
  ScanParts parts;
  const int64_t group_channels = p.groups > 0 ? p.channels / p.groups : 0;
  const int64_t tiles = p.layout.sequences * p.groups * ((group_channels + 15) / 16);
  parts.steps = std::max<int64_t>(p.layout.length, 1);
  // About 1,056 warps fill a large GPU. The borders take as long as about 100 steps of a part, 50 of the backward pass,
  // and then, step for step, at most as long as the forward pass itself, a third of the backward one. Twice as many
  // parts where they stay long, for walks through whole parts by one warp in four.
  constexpr int64_t kFull = 1056, kShortest = kCudaScanChunk;
  if (tiles == 0) return parts;
  const int64_t enough = std::min(kFull / tiles, p.layout.length / kShortest);
  if (enough < (backward ? 2 : 3) || p.layout.length < (backward ? 96 : 160)) return parts;
  const int64_t wanted = std::max(enough, std::min(2 * kFull / tiles, p.layout.length / 1024));
  parts.steps = ((p.layout.length + wanted - 1) / wanted + 15) / 16 * 16;
  parts.count = (p.layout.length + parts.steps - 1) / parts.steps;
  return parts;
}

template <typename T>
int64_t scan_parts_workspace_bytes(const SelectiveScanInputs<T>& p, bool backward) {
  const ScanParts parts = scan_parts(p, backward);
  if (parts.count == 1) return 0;
  return 3 * parts.count * p.layout.sequences * p.channels * p.state * static_cast<int64_t>(sizeof(float));
}

template <typename T>
void find_part_states(const SelectiveScanForward<T>& p, const ScanParts& parts, void* workspace, CudaStream stream) {
  find<T>(p, nullptr, p.initial_state, parts, workspace, stream);
}
template <typename T>
void find_part_gradients(const SelectiveScanBackward<T>& p, const ScanParts& parts, void* workspace,
                         CudaStream stream) {
  find<T>(p, &p.dy, p.dfinal_state, parts, workspace, stream);
}

#define ADDER_INSTANTIATE(T)                                                                           \
  template ScanParts scan_parts(const SelectiveScanInputs<T>&, bool);                                  \
  template int64_t scan_parts_workspace_bytes(const SelectiveScanInputs<T>&, bool);                    \
  template void find_part_states(const SelectiveScanForward<T>&, const ScanParts&, void*, CudaStream); \
  template void find_part_gradients(const SelectiveScanBackward<T>&, const ScanParts&, void*, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
