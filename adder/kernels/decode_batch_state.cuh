#pragma once

#include <utility>

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/decode_step.h"
#include "adder/kernels/wgmma.cuh"

// dt_proj, softplus, the recurrence and the gate of many rows: the states are asked for first, and on their way while
// the step sizes are found.
namespace adder::kernels::cuda {

// A block's channels and rows: as many as an instruction has columns. Four lanes share a channel.
constexpr int kStateChannels = 64, kStateRows = 8, kStateThreads = 256;
constexpr int kMostStateRank = 256;

struct BatchState {
  DecodeShape shape;
  const bfloat16 *u, *z, *projected;  // (rows, d_inner) twice, (rows, rank + 2 states)
  bfloat16* y;                        // (rows, d_inner)
  const bfloat16* dt_weight;          // (d_inner, rank)
  const float *dt_bias, *A, *D;
  float* state;  // (rows, d_inner, states)
};

__device__ __forceinline__ void multiply_16x8(float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                              unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int kStates>
__global__ void __launch_bounds__(kStateThreads, 4) advance_batch(const __grid_constant__ BatchState p) {
#ifdef ADDER_HAS_WGMMA
  constexpr int kEach = kStates / 4, kPieces = (kEach + 3) / 4, kPiece = kEach < 4 ? kEach : 4;
  constexpr int kBlock = 32, kBlocks = kMostStateRank / kBlock / 2;  // columns of two instructions; of half a row
  // A thread's own pieces of the states, side by side with its neighbours'.
  extern __shared__ __align__(16) float states[];
  __shared__ float deltas[2][kStateRows][kStateChannels + 4];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int d_inner = p.shape.d_inner, rank = p.shape.rank, values = rank + 2 * kStates;
  const int first_channel = static_cast<int>(blockIdx.x) * kStateChannels;
  const int first = static_cast<int>(blockIdx.y) * kStateRows, rows = min(kStateRows, p.shape.rows - first);
  const int channel = thread / 4, quarter = thread % 4 * kEach, d = first_channel + channel;
  float* const own_state = p.state + (int64_t{first} * d_inner + d) * kStates + quarter;
  const int64_t row_states = int64_t{d_inner} * kStates;
#pragma unroll
  for (int r = 0; r < kStateRows; ++r)
#pragma unroll
    for (int k = 0; k < kPieces; ++k)
      copy_piece<kPiece * 4>(states + ((r * kPieces + k) * kStateThreads + thread) * kPiece,
                             own_state + min(r, rows - 1) * row_states + k * kPiece);
  end_copies();
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
  const bfloat16* const projected = p.projected + int64_t{first} * values;
  float sum[2][4] = {};
#pragma unroll
  for (int b = 0; b < kBlocks; ++b) {
    const int k = (2 * b + half) * kBlock + lane % 4 * 8;
    if ((2 * b + half) * kBlock >= rank) break;
    uint4 low{};
    if (k < rank && lane / 4 < rows) low = *reinterpret_cast<const uint4*>(projected + lane / 4 * values + k);
    multiply_16x8(sum[0], upper[b].x, lower[b].x, upper[b].y, lower[b].y, low.x, low.y);
    multiply_16x8(sum[1], upper[b].z, lower[b].z, upper[b].w, lower[b].w, low.z, low.w);
  }
  {
    const int c = warp % 4 * 16 + lane / 4, r = lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; ++i) deltas[half][r + i % 2][c + i / 2 * 8] = sum[0][i] + sum[1][i];
  }
  __syncthreads();
  wait_copies<0>();
  const bfloat16* const B_at = projected + rank + quarter;
  constexpr int kAtOnce = kStates <= 16 ? 4 : 1;
#pragma unroll 1
  for (int begin = 0; begin < rows; begin += kAtOnce) {
    bfloat16 u[kAtOnce], z[kAtOnce];
    Vector<bfloat16, kEach < 8 ? kEach : 8> B[kAtOnce][(kEach + 7) / 8], C[kAtOnce][(kEach + 7) / 8];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int r = min(begin + i, rows - 1);
      const int64_t at = int64_t{first + r} * d_inner + d;
      u[i] = p.u[at], z[i] = p.z[at];
#pragma unroll
      for (int k = 0; k < (kEach + 7) / 8; ++k) {
        using V = std::remove_reference_t<decltype(B[0][0])>;
        B[i][k] = *reinterpret_cast<const V*>(B_at + r * values + 8 * k);
        C[i][k] = *reinterpret_cast<const V*>(B_at + r * values + kStates + 8 * k);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int r = begin + i;
      const bool there = r < rows;
      const int at_most = min(r, rows - 1);
      const float x = widen(u[i]), gate = widen(z[i]);
      const float step = softplus_fast(deltas[0][at_most][channel] + deltas[1][at_most][channel] + bias);
      const float du = step * x, decay = step * kLog2E;
      float state[kEach], y = 0;
#pragma unroll
      for (int k = 0; k < kPieces; ++k) {
        float piece[kPiece];
        load_floats(piece, states + ((at_most * kPieces + k) * kStateThreads + thread) * kPiece);
#pragma unroll
        for (int n = 0; n < kPiece; ++n) {
          const int at = k * kPiece + n;
          state[at] = fmaf(exp2_fast(decay * A[at]), piece[n], du * widen(B[i][at / 8].value[at % 8]));
          y = fmaf(widen(C[i][at / 8].value[at % 8]), state[at], y);
        }
      }
      y = fmaf(D, x, sum_lanes(y, 4)) * gate * sigmoid_fast(gate);
      if (there) store_floats(own_state + r * row_states, state);
      if (there && thread % 4 == 0) p.y[int64_t{first + r} * d_inner + d] = narrow<bfloat16>(y);
    }
  }
#endif
}

// The kernel and its bytes of shared memory.
inline std::pair<void (*)(BatchState), int> batch_state_kernel(int states) {
  const int bytes = kStateRows * kStateChannels * states * static_cast<int>(sizeof(float));
  return {states == 8 ? advance_batch<8> : states == 32 ? advance_batch<32> : states == 64 ? advance_batch<64> : advance_batch<16>,
          bytes};
}

}  // namespace adder::kernels::cuda
