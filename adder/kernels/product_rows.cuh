#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/wgmma.cuh"

// Products of up to 128 rows of activations with a weight that is read once: y = x W^T in bfloat16 and float32, for
// Hopper. A block has 64 outputs of all rows; blocks of a cluster share what both read.
namespace adder::kernels::cuda {

// How a product is divided: `columns` blocks of a cluster have neighbouring outputs and share the activations,
// `slices` have a part of the inner dimension each and add up what they found.
struct ProductShape {
  int inner, tiles, columns, slices;  // tiles: of outputs
};

// A tile is two halves of 32 outputs, `apart` rows of the weight from each other.
struct ProductMaps {
  CUtensorMap weight;       // boxes of (32, 64)
  CUtensorMap activations;  // boxes of (rows / columns, 64)
  int half_step, apart;     // rows of the weight from tile to tile, and from half to half
};

constexpr int kTileOutputs = 64, kTileInner = 64, kHalfOutputs = 32;
constexpr int kProductThreads = 256, kProductAllThreads = kProductThreads + 32;
constexpr int kWeightBytes = kTileOutputs * kTileInner * 2, kSumPitch = kTileOutputs + 4;

template <int kRows>
struct ProductLayout {
  static constexpr int kActivationBytes = kRows * kTileInner * 2, kStageBytes = kWeightBytes + kActivationBytes;
  static constexpr int kStages = 98304 / kStageBytes < 8 ? 98304 / kStageBytes : 8;
  static constexpr int kBytes = kStages * kStageBytes + 1024;  // that tiles may begin at multiples of 1,024
  static_assert(kRows * kSumPitch * 4 <= kStages * kStageBytes);
};

struct ProductBarriers {
  uint64_t full[8], empty[8];
};

// The sums of one tile of outputs. kSliced: done(row, output, float (&)[4]), the output being within the tile and a
// multiple of four, by sixteen neighbouring threads a row. Else the first half of the outputs and then the other:
// done(half, i, row, output, sums), i being the how manieth row of the thread, by eight neighbouring threads a row.
// `begin` runs in the threads that will call done, when what the predecessor wrote is there.
template <int kRows, bool kSliced, typename Begin, typename Done>
__device__ __forceinline__ void multiply_rows(const ProductMaps& maps, const ProductShape& shape, int tile, int first_row,
                                              unsigned char* shared, ProductBarriers& barriers, const Begin& begin,
                                              const Done& done) {
  using Layout = ProductLayout<kRows>;
  constexpr int kStages = Layout::kStages;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int rank = static_cast<int>(rank_in_cluster()), column = rank % shape.columns, slice = rank / shape.columns;
  const int all = (shape.inner + kTileInner - 1) / kTileInner;
  const int from = static_cast<int>(int64_t{all} * slice / shape.slices);
  const int steps = static_cast<int>(int64_t{all} * (slice + 1) / shape.slices) - from;
  unsigned char* const tiles = shared + (1024 - shared_address(shared) % 1024) % 1024;
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&barriers.full[s], 1);
      init_barrier(&barriers.empty[s], kProductThreads / 32 * shape.columns);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  meet_cluster<false>();

  if (thread >= kProductThreads) {
    if (lane == 0) {
      const int rows = kRows / shape.columns, own = column * rows;
      const auto mask = static_cast<unsigned short>(((1u << shape.columns) - 1) << (slice * shape.columns));
      const auto copy_weight = [&](int i) {
        const int s = i % kStages;
        const unsigned to = shared_address(tiles + s * Layout::kStageBytes);
        const int output = tile * maps.half_step, inner = (from + i) * kTileInner;
        expect_bytes(&barriers.full[s], Layout::kStageBytes);
        copy_tile(to, &maps.weight, inner, output, &barriers.full[s]);
        copy_tile(to + kWeightBytes / 2, &maps.weight, inner, output + maps.apart, &barriers.full[s]);
      };
      const auto copy_activations = [&](int i) {
        const int s = i % kStages;
        const unsigned to =
            shared_address(tiles + s * Layout::kStageBytes + kWeightBytes + own * kTileInner * 2);
        if (shape.columns == 1)
          copy_tile(to, &maps.activations, (from + i) * kTileInner, first_row, &barriers.full[s]);
        else
          copy_tile_to(to, &maps.activations, (from + i) * kTileInner, first_row + own, &barriers.full[s], mask);
      };
      const int ahead = min(kStages, steps);
      for (int i = 0; i < ahead; ++i) copy_weight(i);  // weights do not depend on the predecessor
      wait_for_predecessor();
      let_successor_begin();
      for (int i = 0; i < ahead; ++i) copy_activations(i);
      for (int i = ahead; i < steps; ++i) {
        wait_barrier(&barriers.empty[i % kStages], (i / kStages - 1) & 1);
        copy_weight(i);
        copy_activations(i);
      }
    }
    __syncwarp();
    if constexpr (kSliced) meet_cluster<true>();
    meet_cluster<false>();
    return;
  }

  wait_for_predecessor();
  let_successor_begin();
  begin();
  constexpr int kColumns = kRows / 2;
  const int group = warp / 4;
  float sums[kColumns / 2] = {};
  const auto release = [&](int i) {
    if (lane < shape.columns) arrive_at(&barriers.empty[i % kStages], slice * shape.columns + lane);
  };
  for (int i = 0; i < steps; ++i) {
    const int s = i % kStages;
    wait_barrier(&barriers.full[s], (i / kStages) & 1);
    const unsigned at = shared_address(tiles + s * Layout::kStageBytes);
    begin_products(sums);
#pragma unroll
    for (int k = 0; k < kTileInner / 16; ++k)
      multiply_tiles<kColumns>(sums, tile_descriptor(at + 32 * k),
                               tile_descriptor(at + kWeightBytes + group * kColumns * kTileInner * 2 + 32 * k));
    end_products();
    wait_products<1>(sums);
    if (i > 0) release(i - 1);
  }
  wait_products<0>(sums);

  // (rows, outputs), where the tiles were.
  auto* const table = reinterpret_cast<float*>(tiles);
  asm volatile("bar.sync 1, %0;" ::"n"(kProductThreads) : "memory");
#pragma unroll
  for (int i = 0; i < kColumns / 8; ++i) {
    const int output = warp % 4 * 16 + lane / 4, row = group * kColumns + 8 * i + lane % 4 * 2;
    table[row * kSumPitch + output] = sums[4 * i];
    table[(row + 1) * kSumPitch + output] = sums[4 * i + 1];
    table[row * kSumPitch + output + 8] = sums[4 * i + 2];
    table[(row + 1) * kSumPitch + output + 8] = sums[4 * i + 3];
  }
  if constexpr (kSliced) {
    constexpr int kThreadsOfRow = kTileOutputs / 4;
    const int four = thread % kThreadsOfRow, rows = kRows / shape.slices;
    meet_cluster<true>();
#pragma unroll 1
    for (int r = thread / kThreadsOfRow; r < rows; r += kProductThreads / kThreadsOfRow) {
      const int row = slice * rows + r;
      const unsigned at = shared_address(table + row * kSumPitch + 4 * four);
      float sum[4] = {};
#pragma unroll 4
      for (int other = 0; other < shape.slices; ++other) {
        const float4 v = load_of_cluster(of_block(at, other * shape.columns + column));
        sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
      }
      done(row, 4 * four, sum);
    }
  } else {
    constexpr int kThreadsOfRow = kHalfOutputs / 4, kAtOnce = kProductThreads / kThreadsOfRow;
    asm volatile("bar.sync 1, %0;" ::"n"(kProductThreads) : "memory");
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < (kRows + kAtOnce - 1) / kAtOnce; ++i) {
        const int row = i * kAtOnce + thread / kThreadsOfRow, output = half * kHalfOutputs + thread % kThreadsOfRow * 4;
        if (row >= kRows) break;
        float sum[4];
        load_floats(sum, table + row * kSumPitch + output);
        done(half, i, row, output, sum);
      }
  }
  meet_cluster<false>();  // none leaves while others read its sums or report to its barriers
}

}  // namespace adder::kernels::cuda
