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

// Tiles wait for their turn in two rings. That of the weights is as long as two blocks a processor allow: weights
// come from memory, and those of the next kernel while this one is at work.
template <int kRows>
struct ProductLayout {
  static constexpr int kWeightBytes = kTileOutputs * kTileInner * 2, kActivationBytes = kRows * kTileInner * 2;
  static constexpr int kActivations = kRows <= 32 ? 8 : 4, kLeft = 106496 - kActivations * kActivationBytes;
  static constexpr int kWeights = kLeft / kWeightBytes;
  static constexpr int kActivationsAt = kWeights * kWeightBytes, kTableBytes = kRows * kSumPitch * 4;
  static constexpr int kBytes = kActivationsAt + kActivations * kActivationBytes + 1024;  // begins at a multiple of it
  static_assert(kTableBytes <= kBytes - 1024);
};

template <int kRows>
struct ProductBarriers {
  uint64_t weight[ProductLayout<kRows>::kWeights], weight_free[ProductLayout<kRows>::kWeights];
  uint64_t activation[ProductLayout<kRows>::kActivations], activation_free[ProductLayout<kRows>::kActivations];
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
  const auto weight_at = [&](int i) { return shared_address(tiles) + i % Layout::kWeights * Layout::kWeightBytes; };
  const auto activations_at = [&](int i) {
    return shared_address(tiles) + Layout::kActivationsAt + i % Layout::kActivations * Layout::kActivationBytes;
  };
  if (thread == 0) {
    for (int i = 0; i < Layout::kWeights; ++i)
      init_barrier(&barriers.weight[i], 1), init_barrier(&barriers.weight_free[i], kProductThreads / 32);
    for (int i = 0; i < Layout::kActivations; ++i)
      init_barrier(&barriers.activation[i], 1), init_barrier(&barriers.activation_free[i], kProductThreads / 32);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (thread >= kProductThreads) {
    if (lane == 0) {
      const auto copy_weight = [&](int i) {
        uint64_t* const full = &barriers.weight[i % Layout::kWeights];
        const int output = place.tile * p.half_step, inner = inner_at(i);
        expect_bytes(full, Layout::kWeightBytes);
        copy_tile(weight_at(i), &p.weight, inner, output, full);
        copy_tile(weight_at(i) + Layout::kWeightBytes / 2, &p.weight, inner, output + p.apart, full);
      };
      const int ahead = min(Layout::kWeights, steps);
      for (int i = 0; i < ahead; ++i) copy_weight(i);  // weights do not depend on the predecessor
      wait_for_predecessor();
      let_successor_begin();
      for (int i = 0; i < steps; ++i) {
        uint64_t* const full = &barriers.activation[i % Layout::kActivations];
        if (i >= Layout::kActivations)
          wait_barrier(&barriers.activation_free[i % Layout::kActivations], (i / Layout::kActivations - 1) & 1);
        expect_bytes(full, Layout::kActivationBytes);
        copy_tile(activations_at(i), &p.activations, inner_at(i), place.first_row, full);
        const int w = i + ahead - Layout::kActivations;  // that is free when these activations are
        if (w >= ahead && w < steps) {
          wait_barrier(&barriers.weight_free[w % Layout::kWeights], (w / Layout::kWeights - 1) & 1);
          copy_weight(w);
        }
      }
      for (int w = max(ahead, steps + ahead - Layout::kActivations); w < steps; ++w) {
        wait_barrier(&barriers.weight_free[w % Layout::kWeights], (w / Layout::kWeights - 1) & 1);
        copy_weight(w);
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
  const auto release = [&](int i) {
    if (lane == 0) {
      arrive(&barriers.weight_free[i % Layout::kWeights]);
      arrive(&barriers.activation_free[i % Layout::kActivations]);
    }
  };
  for (int i = 0; i < steps; ++i) {
    wait_barrier(&barriers.weight[i % Layout::kWeights], (i / Layout::kWeights) & 1);
    wait_barrier(&barriers.activation[i % Layout::kActivations], (i / Layout::kActivations) & 1);
    begin_products(sums);
#pragma unroll
    for (int k = 0; k < kTileInner / 16; ++k)
      multiply_tiles<kColumns>(sums, tile_descriptor(weight_at(i) + 32 * k),
                               tile_descriptor(activations_at(i) + group * kColumns * kTileInner * 2 + 32 * k));
    end_products();
    wait_products<1>(sums);
    if (i > 0) release(i - 1);
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
