#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/decode_step.h"
#include "adder/kernels/mma.cuh"
#include "adder/kernels/wgmma.cuh"

// dt_proj, softplus, the recurrence and the gate of many rows. A block walks through groups of rows of its channels,
// the states of the next groups on their way meanwhile: those of the first before the predecessor has ended.
namespace adder::kernels::cuda {

// A block's channels, and a group's rows: as many as an instruction has columns. Four lanes share a channel.
constexpr int kStateChannels = 64, kStateRows = 8, kStateThreads = 256;
constexpr int kMostStateRank = 256;

struct BatchState {
  DecodeShape shape;
  const bfloat16 *u, *z, *projected;  // (rows, d_inner) twice, (rows, rank + 2 states)
  bfloat16* y;                        // (rows, d_inner)
  const bfloat16* dt_weight;          // (d_inner, rank)
  const float *dt_bias, *A, *D;
  float* state;  // (rows, d_inner, states)
  int groups;    // of a block
};

// Groups in shared memory at once: two blocks share a processor.
template <int kStates>
constexpr int kStateStages = kStates <= 16 ? 3 : 1;

template <int kStates>
__global__ void __launch_bounds__(kStateThreads, 2) advance_batch(const __grid_constant__ BatchState p) {
#ifdef ADDER_HAS_WGMMA
  constexpr int kEach = kStates / 4, kPieces = (kEach + 3) / 4, kPiece = kEach < 4 ? kEach : 4;
  constexpr int kStages = kStateStages<kStates>, kVector = kEach < 8 ? kEach : 8;
  constexpr int kBlock = 32, kBlocks = kMostStateRank / kBlock / 2;  // columns of two instructions; of half a row
  // (stages, rows, pieces, threads, piece): a thread reads what it has copied itself.
  extern __shared__ __align__(16) float states[];
  __shared__ float deltas[2][2][kStateRows][kStateChannels + 4];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int d_inner = p.shape.d_inner, rank = p.shape.rank, values = rank + 2 * kStates;
  const int first_channel = static_cast<int>(blockIdx.x) * kStateChannels;
  const int begin = static_cast<int>(blockIdx.y) * p.groups * kStateRows;
  const int end = min(begin + p.groups * kStateRows, p.shape.rows);
  const int channel = thread / 4, quarter = thread % 4 * kEach, d = first_channel + channel;
  float* const own_state = p.state + int64_t{d} * kStates + quarter;
  const int64_t row_states = int64_t{d_inner} * kStates;
  const auto place = [&](int stage, int r, int k) {
    return states + (((stage * kStateRows + r) * kPieces + k) * kStateThreads + thread) * kPiece;
  };
  const auto copy_group = [&](int first, int stage) {
#pragma unroll
    for (int r = 0; r < kStateRows; ++r)
#pragma unroll
      for (int k = 0; k < kPieces; ++k)
        if (first + r < end)
          copy_piece<kPiece * 4>(place(stage, r, k), own_state + (first + r) * row_states + k * kPiece);
    end_copies();
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) copy_group(begin + stage * kStateRows, stage);
  float A[kEach];
  load_floats(A, p.A + int64_t{d} * kStates + quarter);
  const float bias = p.dt_bias[d], D = p.D[d];

  // Step sizes: four warps have 16 channels each, and half of the inner dimension. Which columns an instruction
  // multiplies is for the reader to say: a lane takes eight neighbours of both.
  const int half = warp / 4, of_warp = first_channel + warp % 4 * 16 + lane / 4;
  uint4 upper[kBlocks], lower[kBlocks];
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int k = (2 * b + half) * kBlock + lane % 4 * 8;
    upper[b] = lower[b] = uint4{};
    if (k < rank) {
      upper[b] = *reinterpret_cast<const uint4*>(p.dt_weight + int64_t{of_warp} * rank + k);
      lower[b] = *reinterpret_cast<const uint4*>(p.dt_weight + int64_t{of_warp + 8} * rank + k);
    }
  }
  wait_for_predecessor();
  let_successor_begin();
  int stage = 0, turn = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kStateRows) {
    const bfloat16* const projected = p.projected + int64_t{first} * values;
    uint4 low[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      const int k = (2 * b + half) * kBlock + lane % 4 * 8;
      low[b] = uint4{};
      if (k < rank && first + lane / 4 < end)
        low[b] = *reinterpret_cast<const uint4*>(projected + lane / 4 * values + k);
    }
    constexpr int kAtOnce = kStates <= 16 ? kStateRows : 1;
    bfloat16 u[kAtOnce], z[kAtOnce];
    Vector<bfloat16, kVector> B[kAtOnce][kEach / kVector], C[kAtOnce][kEach / kVector];
    const auto load = [&](int from) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int r = min(from + i, end - 1 - first);
        const int64_t at = int64_t{first + r} * d_inner + d;
        u[i] = p.u[at], z[i] = p.z[at];
        const bfloat16* const B_at = projected + r * values + rank + quarter;
#pragma unroll
        for (int k = 0; k < kEach / kVector; ++k) {
          B[i][k] = *reinterpret_cast<const Vector<bfloat16, kVector>*>(B_at + k * kVector);
          C[i][k] = *reinterpret_cast<const Vector<bfloat16, kVector>*>(B_at + kStates + k * kVector);
        }
      }
    };
    load(0);
    float sum[2][4] = {};
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      if ((2 * b + half) * kBlock >= rank) break;
      multiply_16x8(sum[0], upper[b].x, lower[b].x, upper[b].y, lower[b].y, low[b].x, low[b].y);
      multiply_16x8(sum[1], upper[b].z, lower[b].z, upper[b].w, lower[b].w, low[b].z, low[b].w);
    }
    {
      const int c = warp % 4 * 16 + lane / 4, r = lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < 4; ++i) deltas[turn][half][r + i % 2][c + i / 2 * 8] = sum[0][i] + sum[1][i];
    }
    wait_copies<kStages - 1>();
    __syncthreads();
#pragma unroll 1
    for (int from = 0; from < kStateRows; from += kAtOnce) {
      if (from > 0) load(from);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int r = from + i;
        const float x = widen(u[i]), gate = widen(z[i]);
        const float step = softplus_fast(deltas[turn][0][r][channel] + deltas[turn][1][r][channel] + bias);
        const float du = step * x, decay = step * kLog2E;
        float state[kEach], y = 0;
#pragma unroll
        for (int k = 0; k < kPieces; ++k) {
          float piece[kPiece];
          load_floats(piece, place(stage, r, k));
#pragma unroll
          for (int n = 0; n < kPiece; ++n) {
            const int at = k * kPiece + n;
            state[at] = fmaf(exp2_fast(decay * A[at]), piece[n], du * widen(B[i][at / kVector].value[at % kVector]));
            y = fmaf(widen(C[i][at / kVector].value[at % kVector]), state[at], y);
          }
        }
        y = fmaf(D, x, sum_lanes(y, 4)) * gate * sigmoid_fast(gate);
        const bool there = first + r < end;
        if (there) store_floats(own_state + (first + r) * row_states, state);
        if (there && thread % 4 == 0) p.y[int64_t{first + r} * d_inner + d] = narrow<bfloat16>(y);
      }
    }
    copy_group(first + kStages * kStateRows, stage);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    turn = 1 - turn;  // the other's readers are all behind this group's barrier
  }
#endif
}

struct BatchStateLaunch {
  void (*kernel)(BatchState);
  dim3 grid;
  int bytes, groups;
};

inline BatchStateLaunch batch_state_launch(const DecodeShape& s) {
  const int processors = processor_count();
  const int blocks = s.d_inner / kStateChannels, groups = (s.rows + kStateRows - 1) / kStateRows;
  const auto of = [&]<int kStates>() {
    // Blocks that are all at work at once.
    const int each = std::max(1, (blocks * groups + 2 * processors - 1) / (2 * processors));
    const BatchStateLaunch l{
        advance_batch<kStates>, dim3(blocks, (groups + each - 1) / each),
        kStateStages<kStates> * kStateRows * kStateChannels * kStates * static_cast<int>(sizeof(float)), each};
    check(cudaFuncSetAttribute(l.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.bytes), "decode_batch");
    return l;
  };
  switch (s.states) {
    case 8:
      return of.operator()<8>();
    case 32:
      return of.operator()<32>();
    case 64:
      return of.operator()<64>();
    default:
      return of.operator()<16>();
  }
}

}  // namespace adder::kernels::cuda
