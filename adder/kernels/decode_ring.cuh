#pragma once

#include "adder/kernels/cuda_numbers.cuh"

// Rows of weights on their way through shared memory: one warp of a block copies them into a ring of slots, in the
// order in which the others use them, as far ahead as the ring reaches.
namespace adder::kernels::cuda {

// A slot: up to 16 rows of 1 KiB; 16 bytes more between them, so that eight neighbouring rows lie in different banks.
constexpr int kTileRows = 16, kSlotRowBytes = 1024, kSlotPitch = kSlotRowBytes + 16;
constexpr int kSlotBytes = kTileRows * kSlotPitch, kMostSlots = 16;
constexpr int kMostChannels = 64;  // of a block, whose rows of dt_proj lie in the ring together
template <typename W>
constexpr int kSlotColumns = kSlotRowBytes / static_cast<int>(sizeof(W));

template <typename W>
struct WeightRows {
  const W* weight;  // (?, columns)
  int columns, begin, end;
};

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
__device__ __forceinline__ void wait_for(const uint64_t* barrier, unsigned parity) {
  unsigned done;
  do {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// From Hopper on a thread has whole rows copied, and the barrier counts bytes.
#if __CUDA_ARCH__ >= 900
constexpr int kCopiers = 1;
#else
constexpr int kCopiers = 32;
#endif

// Barriers: a slot's first says that it is full, its second that it is free.
__device__ inline void prepare_ring(uint64_t* barriers, int slots, int readers) {
  for (int i = 0; i < slots; ++i) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barriers + 2 * i)), "n"(kCopiers));
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barriers + 2 * i + 1)), "r"(readers));
  }
}

struct RingPlace {
  int slots, slot = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == slots) slot = 0, parity ^= 1;
  }
};

class RingWriter {  // one warp
 public:
  __device__ RingWriter(unsigned char* ring, uint64_t* barriers, int slots)
      : ring_(ring), barriers_(barriers), place_{slots}, lane_(static_cast<int>(threadIdx.x) % 32) {}

  template <typename W>
  __device__ void write(const WeightRows<W>& rows) {
    for (int tile = rows.begin; tile < rows.end; tile += kTileRows)
      for (int column = 0; column < rows.columns; column += kSlotColumns<W>) {
        wait_for(barriers_ + 2 * place_.slot + 1, place_.parity ^ 1);
        const int count = min(kTileRows, rows.end - tile);
        const int bytes = min(kSlotColumns<W>, rows.columns - column) * static_cast<int>(sizeof(W));
        const auto* from = reinterpret_cast<const unsigned char*>(
            rows.weight + static_cast<int64_t>(tile) * rows.columns + column);
        const int64_t stride = rows.columns * static_cast<int64_t>(sizeof(W));
        unsigned to = shared_address(ring_ + place_.slot * kSlotBytes);
        const unsigned full = shared_address(barriers_ + 2 * place_.slot);
#if __CUDA_ARCH__ >= 900
        if (lane_ == 0)
          asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(full), "r"(count * bytes) : "memory");
        __syncwarp();
        if (lane_ < count)
          asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                           to + lane_ * kSlotPitch),
                       "l"(from + lane_ * stride), "r"(bytes), "r"(full)
                       : "memory");
#else
        for (int row = 0; row < count; ++row, from += stride, to += kSlotPitch)
          for (int at = 16 * lane_; at < bytes; at += 16 * 32)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + at), "l"(from + at) : "memory");
        asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
#endif
        place_.advance();
      }
  }

 private:
  unsigned char* ring_;
  uint64_t* barriers_;
  RingPlace place_;
  int lane_;
};

class RingReader {  // each warp has its own
 public:
  __device__ RingReader(unsigned char* ring, uint64_t* barriers, int slots)
      : ring_(ring), barriers_(barriers), next_{slots}, held_{slots} {}

  // The next slot, once it is full.
  __device__ __forceinline__ const unsigned char* wait() {
    wait_for(barriers_ + 2 * next_.slot, next_.parity);
    const unsigned char* const slot = ring_ + next_.slot * kSlotBytes;
    next_.advance();
    return slot;
  }
  // Gives the oldest of this warp's slots back.
  __device__ __forceinline__ void release(int lane) {
    __syncwarp();
    if (lane == 0) {
      asm volatile("{\n .reg .b64 state;\n mbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(
                       shared_address(barriers_ + 2 * held_.slot + 1))
                   : "memory");
    }
    held_.advance();
  }

 private:
  unsigned char* ring_;
  uint64_t* barriers_;
  RingPlace next_, held_;
};

// A warp's part of the products of up to 16 rows of weights with up to 8 rows of activations.
template <typename W>
struct TileProduct;

template <>
struct TileProduct<bfloat16> {
  float sum[4] = {};

  // `warps` warps take the slot's columns in turn, 16 at a time.
  template <int kWarps>
  __device__ __forceinline__ void add(const unsigned char* slot, int columns, const bfloat16* activations, int pitch,
                                      int rows, int warp, int lane) {
    const unsigned from = shared_address(slot) + lane % 16 * kSlotPitch + lane / 16 * 16;
    const bfloat16* const row = activations + lane / 4 * pitch + lane % 4 * 2;
    for (int column = 16 * warp; column < columns; column += 16 * kWarps) {
      unsigned a[4], b[2] = {0, 0};
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                   : "r"(from + 2 * column)
                   : "memory");
      if (lane / 4 < rows) {
        b[0] = *reinterpret_cast<const unsigned*>(row + column);
        b[1] = *reinterpret_cast<const unsigned*>(row + column + 8);
      }
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
  }
  // To (rows, 16).
  __device__ __forceinline__ void store(float* to, int rows, int lane) const {
    const int out = lane / 4, row = lane % 4 * 2;
    if (row < rows) to[row * kTileRows + out] = sum[0], to[row * kTileRows + out + 8] = sum[2];
    if (row + 1 < rows) to[(row + 1) * kTileRows + out] = sum[1], to[(row + 1) * kTileRows + out + 8] = sum[3];
  }
};

template <>
struct TileProduct<float> {
  static constexpr int kRows = 8;
  float sum[kRows] = {};

  // Two lanes share a row of weights.
  template <int kWarps>
  __device__ __forceinline__ void add(const unsigned char* slot, int columns, const float* activations, int pitch,
                                      int rows, int warp, int lane) {
    constexpr int kEach = kSlotColumns<float> / 4 / kWarps / 2;
    const unsigned char* const from = slot + lane / 2 * kSlotPitch;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int column = 4 * ((2 * warp + lane % 2) * kEach + j);
      if (column >= columns) break;
      const float4 w = *reinterpret_cast<const float4*>(from + 4 * column);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const float4 x = *reinterpret_cast<const float4*>(activations + r * pitch + column);
        sum[r] = fmaf(w.w, x.w, fmaf(w.z, x.z, fmaf(w.y, x.y, fmaf(w.x, x.x, sum[r]))));
      }
    }
  }
  __device__ __forceinline__ void store(float* to, int rows, int lane) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float both = sum[r] + __shfl_xor_sync(0xFFFFFFFFu, sum[r], 1);
      if (r < rows && lane % 2 == 0) to[r * kTileRows + lane / 2] = both;
    }
  }
};

}  // namespace adder::kernels::cuda
