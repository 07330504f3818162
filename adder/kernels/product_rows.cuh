#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/wgmma.cuh"

// Products of up to 128 rows of activations with a weight that is read once: y = x W^T in bfloat16 and float32, for
// Hopper. A block has 64 outputs of all rows, of a slice of the inner dimension; a cluster has all slices.
namespace adder::kernels::cuda {

// A tile is two halves of 32 outputs, `apart` rows of the weight from each other.
struct Product {
  CUtensorMap weight;       // boxes of (32, 64)
  CUtensorMap activations;  // boxes of (rows of a block, 64)
  int half_step, apart;     // rows of the weight from tile to tile, and from half to half
  int inner, tiles;
};

constexpr int kTileOutputs = 64, kTileInner = 64, kHalfOutputs = 32;
constexpr int kProductThreads = 256, kProductAllThreads = kProductThreads + 32;
constexpr int kSumPitch = kTileOutputs + 4;

__host__ __device__ constexpr int tiles_of(int outputs, int each = kTileOutputs) {
  return (outputs + each - 1) / each;
}

// Tiles wait for their turn in a ring, as long as two blocks a processor allow: the weights of the next kernel come
// while this one is at work.
template <int kRows>
struct ProductLayout {
  static constexpr int kWeightBytes = kTileOutputs * kTileInner * 2, kActivationBytes = kRows * kTileInner * 2;
  static constexpr int kStageBytes = kWeightBytes + kActivationBytes;
  static constexpr int kStages = 98304 / kStageBytes < 8 ? 98304 / kStageBytes : 8;
  static constexpr int kBytes = kStages * kStageBytes + 1024;  // the ring begins at a multiple of it
  static_assert(kRows * kSumPitch * 4 <= kStages * kStageBytes);
};

template <int kRows>
struct ProductBarriers {
  uint64_t full[ProductLayout<kRows>::kStages], free[ProductLayout<kRows>::kStages];
};

struct ProductPlace {
  int tile, first_row, slice;

  template <int kRows, int kSlices>
  static __device__ __forceinline__ ProductPlace of_block() {
    const int block = static_cast<int>(blockIdx.x);
    return {block / kSlices, static_cast<int>(blockIdx.y) * kRows, block % kSlices};
  }
};

// Which sums a thread is given at the end: of kEach rows, four outputs of each half, or of the tile where the inner
// dimension is sliced and each block of the cluster has a part of the rows.
template <int kRows, int kSlices>
struct ProductShare {
  static constexpr int kOutputs = kSlices > 1 ? kTileOutputs : kHalfOutputs, kHalves = kTileOutputs / kOutputs;
  static constexpr int kThreadsOfRow = kOutputs / 4, kAtOnce = kProductThreads / kThreadsOfRow;
  static constexpr int kOwn = kRows / kSlices, kEach = (kOwn + kAtOnce - 1) / kAtOnce;

  // Of the i-th row, within the block's; none where it is not below kRows.
  static __device__ __forceinline__ int row(int slice, int i) {
    const int r = i * kAtOnce + static_cast<int>(threadIdx.x) / kThreadsOfRow;
    return r < kOwn ? slice * kOwn + r : kRows;
  }
  static __device__ __forceinline__ int output(int half) {
    return half * kHalfOutputs + static_cast<int>(threadIdx.x) % kThreadsOfRow * 4;
  }
};

// The sums of one tile of outputs: done(half, i, row, output, float (&)[4]) for all of the thread's share, row being
// within the block's rows and output within the tile. Before that, in the same threads: begin() when what the
// predecessor wrote is there, and ready() between the products and done.
template <int kRows, int kSlices, typename Begin, typename Ready, typename Done>
__device__ __forceinline__ void multiply_rows(const Product& p, const ProductPlace& place, unsigned char* shared,
                                              ProductBarriers<kRows>& barriers, const Begin& begin, const Ready& ready,
                                              const Done& done) {
  using Layout = ProductLayout<kRows>;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int all = (p.inner + kTileInner - 1) / kTileInner;
  const int from = static_cast<int>(int64_t{all} * place.slice / kSlices);
  const int steps = static_cast<int>(int64_t{all} * (place.slice + 1) / kSlices) - from;
  // Neighbouring blocks begin at different places: all at once they would ask for the same activations, and for rows of
  // weights that are a power of two apart.
  const auto inner_at = [&](int i) {
    const int at = place.tile % max(steps, 1) + i;
    return (from + (at < steps ? at : at - steps)) * kTileInner;
  };
  unsigned char* const tiles = shared + (1024 - shared_address(shared) % 1024) % 1024;
  const unsigned stages = keep(shared_address(tiles)), full = keep(shared_address(barriers.full)),
                 free = keep(shared_address(barriers.free));
  constexpr int kStages = Layout::kStages;
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(full + 8 * s, 1);
      init_barrier(free + 8 * s, kProductThreads / 32);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (thread >= kProductThreads) {
    if (lane == 0) {
      const int output = place.tile * p.half_step;
      const auto copy_weight = [&](int i, int s) {
        const unsigned to = stages + s * Layout::kStageBytes;
        expect_bytes(full + 8 * s, Layout::kStageBytes);
        copy_tile(to, &p.weight, inner_at(i), output, full + 8 * s);
        copy_tile(to + Layout::kWeightBytes / 2, &p.weight, inner_at(i), output + p.apart, full + 8 * s);
      };
      const auto copy_activations = [&](int i, int s) {
        copy_tile(stages + s * Layout::kStageBytes + Layout::kWeightBytes, &p.activations, inner_at(i), place.first_row,
                  full + 8 * s);
      };
      const int ahead = min(kStages, steps);
      for (int i = 0; i < ahead; ++i) copy_weight(i, i);  // weights do not depend on the predecessor
      wait_for_predecessor();
      let_successor_begin();
      for (int i = 0; i < ahead; ++i) copy_activations(i, i);
      unsigned parity = 0;
      for (int i = ahead, s = 0; i < steps; ++i) {
        wait_barrier(free + 8 * s, parity);
        copy_weight(i, s);
        copy_activations(i, s);
        if (++s == kStages) s = 0, parity ^= 1;
      }
    }
    __syncwarp();
    if constexpr (kSlices > 1) meet_cluster<true>(), meet_cluster<false>();
    return;
  }

  wait_for_predecessor();
  let_successor_begin();
  begin();
  constexpr int kColumns = kRows / 2;
  const int group = warp / 4;
  float sums[kColumns / 2] = {};
  const unsigned weights = tile_descriptor(stages);
  const unsigned activations = tile_descriptor(stages + Layout::kWeightBytes + group * kColumns * kTileInner * 2);
  unsigned parity = 0;
  bool held = false;  // the stage before, by products that may be under way
#pragma unroll 1
  for (int i = 0; i < steps; i += kStages) {
    // Unrolled, so that all places but the parity are known: what is found out here is waited for by the products.
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      if (i + s >= steps) break;
      const unsigned stage_before = free + 8 * ((s + kStages - 1) % kStages);
      if (held && !__all_sync(kAllLanes, barrier_is_done(full + 8 * s, parity))) {
        // It is memory that is waited for: the stage before goes back now, not when the next one has come.
        wait_products<0>(sums);
        if (lane == 0) arrive(stage_before);
        held = false;
      }
      wait_barrier(full + 8 * s, parity);
      begin_products(sums);
#pragma unroll
      for (int k = 0; k < kTileInner / 16; ++k) {
        const unsigned further = (s * Layout::kStageBytes + 32 * k) / 16;
        multiply_tiles<kColumns>(sums, weights + further, activations + further);
      }
      end_products();
      wait_products<1>(sums);
      if (held && lane == 0) arrive(stage_before);
      held = true;
    }
    parity ^= 1;
  }
  wait_products<0>(sums);
  ready();

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
  using Share = ProductShare<kRows, kSlices>;
  if constexpr (kSlices > 1)
    meet_cluster<true>();
  else
    asm volatile("bar.sync 1, %0;" ::"n"(kProductThreads) : "memory");
#pragma unroll
  for (int half = 0; half < Share::kHalves; ++half)
#pragma unroll
    for (int i = 0; i < Share::kEach; ++i) {
      const int row = Share::row(place.slice, i), output = Share::output(half);
      if (row >= kRows) break;
      float sum[4] = {};
      if constexpr (kSlices > 1) {
        const unsigned at = shared_address(table + row * kSumPitch + output);
        float4 v[kSlices];
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) v[slice] = load_of_cluster(of_block(at, slice));
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice)
          sum[0] += v[slice].x, sum[1] += v[slice].y, sum[2] += v[slice].z, sum[3] += v[slice].w;
      } else {
        load_floats(sum, table + row * kSumPitch + output);
      }
      done(half, i, row, output, sum);
    }
  if constexpr (kSlices > 1) meet_cluster<false>();  // none leaves while others read its sums
}

}  // namespace adder::kernels::cuda
