#pragma once

#include "adder/kernels/async_copy.cuh"
#include "adder/kernels/cuda_numbers.cuh"
#include "adder/kernels/mma.cuh"

// Rows of weights on their way through shared memory: some warps of a block copy them into a ring, in the order in
// which the others use them, as far ahead as the ring reaches.
namespace adder::kernels::cuda {

// The ring is made of units of two rows of 2 KiB, with 64 bytes more between rows, so that what a warp reads of
// two neighbouring rows lies in different banks. A piece is up to 16 rows of as many columns as 2 KiB holds: it takes
// as many units as its rows need.
constexpr int kTileRows = 16, kRowBytes = 2048, kPitch = kRowBytes + 64, kUnitRows = 2, kUnitBytes = kUnitRows * kPitch;
// Narrow rows, of at most 512 bytes, lie more densely, and all of a block are one piece.
constexpr int kNarrowBytes = 512, kNarrowPitch = kNarrowBytes + 16, kNarrowRows = kUnitBytes / kNarrowPitch;
// Pieces in the ring at once.
constexpr int kMostPieces = 64;
// A share of the rows each: a warp hands out one copy after another, slower than memory could take them.
constexpr int kLoadWarps = 2;
template <typename W>
constexpr int kPieceColumns = kRowBytes / static_cast<int>(sizeof(W));

template <typename W>
struct WeightRows {
  const W* weight;  // (?, columns)
  int columns, begin, end;
};

__device__ __forceinline__ void wait_for(const uint64_t* barrier, unsigned parity) {
  unsigned done;
  do {
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.shared.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
  } while (done == 0);
}

__device__ __forceinline__ void arrive(const uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// From Hopper on whole rows are copied, and the barrier counts bytes; each loading warp arrives, so that none can be a
// lap ahead of the other.
#if __CUDA_ARCH__ >= 900
constexpr int kCopiers = kLoadWarps;
#else
constexpr int kCopiers = 32 * kLoadWarps;
#endif

constexpr int kRingReaders = 8;  // warps

// In shared memory: which pieces have come, and which all readers have given back. A barrier's arrival is release
// enough; a store with release would be a fence of the whole block.
struct RingState {
  uint64_t full[kMostPieces], empty[kMostPieces];
};

struct Ring {
  unsigned char* memory;
  RingState* state;
  int units;
};

__device__ inline void prepare(const Ring& ring) {
  for (int i = 0; i < kMostPieces; ++i) {
    init_barrier(shared_address(&ring.state->full[i]), kCopiers);
    init_barrier(shared_address(&ring.state->empty[i]), kRingReaders);
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // copies report to the barriers as initialised here
#endif
}

// Where the next piece lies: counted alike by who writes and who reads.
struct RingPlace {
  int unit = 0, piece = 0;  // unit: in the ring
  unsigned parity = 0;

  __device__ __forceinline__ void advance(int units, int of) {
    unit += units;
    if (unit >= of) unit -= of;
    if (++piece == kMostPieces) piece = 0, parity ^= 1;
  }
};

__device__ __forceinline__ int units_for(int rows) {
  return (rows + kUnitRows - 1) / kUnitRows;
}

__device__ __forceinline__ int units_for_narrow(int rows) {
  return (rows + kNarrowRows - 1) / kNarrowRows;
}

class RingWriter {  // one for each of the loading warps
 public:
  __device__ RingWriter(const Ring& ring, int warp)
      : ring_(ring), warp_(warp), lane_(static_cast<int>(threadIdx.x) % 32) {}

  template <typename W>
  __device__ void write(const WeightRows<W>& rows) {
#pragma unroll 1
    for (int tile = rows.begin; tile < rows.end; tile += kTileRows)
#pragma unroll 1
      for (int column = 0; column < rows.columns; column += kPieceColumns<W>) {
        const int count = min(kTileRows, rows.end - tile), units = units_for(count);
        const int bytes = min(kPieceColumns<W>, rows.columns - column) * static_cast<int>(sizeof(W));
        reserve(units);
        const unsigned full = shared_address(&ring_.state->full[place_.piece]);
        const int64_t stride = rows.columns * static_cast<int64_t>(sizeof(W));
        const auto* const from =
            reinterpret_cast<const unsigned char*>(rows.weight + static_cast<int64_t>(tile) * rows.columns + column);
        copy(from, stride, bytes, count, full,
             [this](int row) { return to(row / kUnitRows, row % kUnitRows * kPitch); });
        place_.advance(units, ring_.units);
      }
  }
  template <typename W>
  __device__ void write_narrow(const WeightRows<W>& rows) {
    const int count = rows.end - rows.begin, units = units_for_narrow(count);
    reserve(units);
    const int64_t bytes = rows.columns * static_cast<int64_t>(sizeof(W));
    copy(reinterpret_cast<const unsigned char*>(rows.weight) + rows.begin * bytes, bytes, static_cast<int>(bytes),
         count, shared_address(&ring_.state->full[place_.piece]),
         [this](int row) { return to(row / kNarrowRows, row % kNarrowRows * kNarrowPitch); });
    place_.advance(units, ring_.units);
  }

 private:
  __device__ __forceinline__ unsigned to(int further, int offset) const {
    const int unit = place_.unit + further;
    return shared_address(ring_.memory) + (unit >= ring_.units ? unit - ring_.units : unit) * kUnitBytes + offset;
  }

  template <typename To>
  __device__ __forceinline__ void copy(const unsigned char* from, int64_t stride, int bytes, int count, unsigned full,
                                       const To& to_row) const {
#if __CUDA_ARCH__ >= 900
    if (lane_ == 0) expect_bytes(full, (count - warp_ + kLoadWarps - 1) / kLoadWarps * bytes);
    __syncwarp();
    for (int row = kLoadWarps * lane_ + warp_; row < count; row += kLoadWarps * 32)
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to_row(row)),
          "l"(from + row * stride), "r"(bytes), "r"(full)
          : "memory");
#else
    for (int row = warp_; row < count; row += kLoadWarps)
      for (int at = 16 * lane_; at < bytes; at += 16 * 32)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to_row(row) + at), "l"(from + row * stride + at)
                     : "memory");
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(full) : "memory");
#endif
  }

  // Waits until all readers have given back the oldest pieces, as many as the next one needs the units of. No more
  // pieces than there are barriers can be in the ring at once, as each takes a unit.
  __device__ __forceinline__ void reserve(int units) {
    taken_ += units;
    while (taken_ > ring_.units) {
      wait_for(&ring_.state->empty[oldest_.piece], oldest_.parity);
      const int in_lane = oldest_.piece < 32 ? units_of_[0] : units_of_[1];
      taken_ -= __shfl_sync(0xFFFFFFFFu, in_lane, oldest_.piece % 32);
      oldest_.advance(0, ring_.units);
    }
    if (lane_ == place_.piece % 32) (place_.piece < 32 ? units_of_[0] : units_of_[1]) = units;
  }

  Ring ring_;
  RingPlace place_, oldest_;
  int taken_ = 0, units_of_[2] = {}, warp_, lane_;  // units of the pieces in the ring, a piece a lane
  static_assert(kMostPieces == 64);
};

// Rows of a piece as they lie in the ring.
struct Piece {
  unsigned first, end, size;  // shared addresses of its first row and of the ring's end; the ring's size
  int last;                   // row

  // Beyond the last row the last: what lies there is being written, or not yet.
  __device__ __forceinline__ unsigned row(int r) const { return within(first + min(r, last) * kPitch); }
  __device__ __forceinline__ unsigned narrow_row(int r) const { return within(first + r * kNarrowPitch); }
  __device__ __forceinline__ unsigned within(unsigned at) const { return at >= end ? at - size : at; }
};

class RingReader {  // each of the computing warps has its own
 public:
  __device__ explicit RingReader(const Ring& ring) : ring_(ring) {}

  // The next piece, of so many units, once it has come.
  __device__ __forceinline__ Piece wait(int units) {
    wait_for(&ring_.state->full[place_.piece], place_.parity);
    const unsigned memory = shared_address(ring_.memory), size = ring_.units * kUnitBytes;
    const Piece piece{memory + place_.unit * kUnitBytes, memory + size, size, units * kUnitRows - 1};
    place_.advance(units, ring_.units);
    return piece;
  }
  // Gives the oldest piece back.
  __device__ __forceinline__ void release(int lane) {
    __syncwarp();
    if (lane == 0) arrive(&ring_.state->empty[oldest_]);
    if (++oldest_ == kMostPieces) oldest_ = 0;
  }

 private:
  Ring ring_;
  RingPlace place_;
  int oldest_ = 0;
};

template <typename T>
__device__ __forceinline__ T load_shared(unsigned address) {
  return *static_cast<const T*>(__cvta_shared_to_generic(address));
}

// A warp's part of the products of up to 16 rows of weights with up to 8 rows of activations.
template <typename W>
struct TileProduct;

template <>
struct TileProduct<bfloat16> {
  static constexpr int kBlock = 32;  // columns in two instructions
  float sum[2][4] = {};              // two, which need not wait for each other

  // kWarps warps take the piece's columns in turn, a block at a time. Which columns an instruction multiplies is for
  // the reader to say, as long as weights and activations agree: a lane takes eight neighbours of both.
  template <int kWarps>
  __device__ __forceinline__ void add(const Piece& piece, int columns, const bfloat16* activations, int pitch, int rows,
                                      int warp, int lane) {
    const int row = lane / 4, from = 2 * (kBlock * warp + lane % 4 * 8);
    const unsigned upper = piece.row(row) + from, lower = piece.row(row + 8) + from;
    const unsigned x = shared_address(activations + row * pitch) + from;
    constexpr int kStride = 2 * kBlock * kWarps, kSteps = kRowBytes / kStride;
    struct Operands {
      uint4 a, b, c;
    };
    const auto load = [&](int step) -> Operands {
      return {load_shared<uint4>(upper + step * kStride), load_shared<uint4>(lower + step * kStride),
              row < rows ? load_shared<uint4>(x + step * kStride) : uint4{0, 0, 0, 0}};
    };
    const auto multiply = [&](const Operands& o) {
      multiply_16x8(sum[0], o.a.x, o.b.x, o.a.y, o.b.y, o.c.x, o.c.y);
      multiply_16x8(sum[1], o.a.z, o.b.z, o.a.w, o.b.w, o.c.z, o.c.w);
    };
    if (columns == kPieceColumns<bfloat16>) {  // a branch between the steps would keep their loads from overlapping
      Operands all[kSteps];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) all[step] = load(step);
#pragma unroll
      for (int step = 0; step < kSteps; ++step) multiply(all[step]);
    } else {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        if (kBlock * (warp + step * kWarps) >= columns) break;
        multiply(load(step));
      }
    }
  }
  // To (rows, 16).
  __device__ __forceinline__ void store(float* to, int rows, int lane) const {
    const int out = lane / 4, row = lane % 4 * 2;
    const auto put = [&](int r, int o, int i) {
      if (r < rows) to[r * kTileRows + o] = sum[0][i] + sum[1][i];
    };
    put(row, out, 0), put(row + 1, out, 1), put(row, out + 8, 2), put(row + 1, out + 8, 3);
  }
};

template <>
struct TileProduct<float> {
  static constexpr int kBlock = 16, kRows = 8;
  float sum[kRows] = {};

  // Two lanes share a row of weights.
  template <int kWarps>
  __device__ __forceinline__ void add(const Piece& piece, int columns, const float* activations, int pitch, int rows,
                                      int warp, int lane) {
    constexpr int kEach = kPieceColumns<float> / 4 / kWarps / 2;
    const unsigned from = piece.row(lane / 2);
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const int column = 4 * ((2 * warp + lane % 2) * kEach + j);
      if (column >= columns) break;
      const auto w = load_shared<float4>(from + 4 * column);
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
