#pragma once

#include "adder/kernels/async_copy.cuh"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/selective_scan_cuda.h"
#include "adder/kernels/sequence_rows.cuh"

// What the fast scans of both directions share: tiles of a few steps and a warp's channels, copied asynchronously into
// shared memory, and what the gradients of a step are made of.
namespace adder::kernels::cuda {

// How far apart a tensor's tiles are: bytes from one tile's first row to the next one's, in the direction of time.
// The fast path takes strides for which this fits.
struct TileStrides {
  int u, delta, z, B, C, y;
};

// Whether rows start at multiples of `bytes` and their elements lie side by side.
template <typename T>
bool copies_by(int bytes, const T* data, std::initializer_list<int64_t> strides, int64_t unit) {
  bool fits = reinterpret_cast<uintptr_t>(data) % bytes == 0 && unit == 1;
  for (const int64_t stride : strides) fits = fits && stride * static_cast<int64_t>(sizeof(T)) % bytes == 0;
  return fits;
}

// A tile's rows lie less than 2^31 bytes apart.
template <typename T>
bool is_near(int64_t l) {
  return std::abs(l) < (int64_t{1} << 31) / (32 * static_cast<int64_t>(sizeof(T)));
}
template <typename T>
bool rows_are_plain(const View3<const T>& v) {
  return copies_by(16, v.data, {v.b, v.l}, v.d) && is_near<T>(v.l);
}
// The inputs are plain if nothing is masked and u, delta and z can be copied 16 bytes at a time. B and C follow delta's
// projection in one row as a rule, so that they may lie at odd places: they are copied 16 or 4 bytes at a time, which
// is what this returns; 0 where the inputs are not plain.
template <typename T>
int plain_piece(const SelectiveScanInputs<T>& p) {
  const auto states = [](const View4<const T>& v, int bytes) {
    return copies_by(bytes, v.data, {v.b, v.l, v.g}, v.n) && is_near<T>(v.l);
  };
  if (p.layout.mask.data != nullptr || p.channels / p.groups * static_cast<int64_t>(sizeof(T)) % 16 != 0 ||
      !rows_are_plain(p.u) || !rows_are_plain(p.delta) || (p.z.data != nullptr && !rows_are_plain(p.z)))
    return 0;
  for (const int bytes : {16, 4})
    if (states(p.B_step, bytes) && states(p.C_step, bytes)) return bytes;
  return 0;
}

// f<kGate, kPiece>() for what plain_piece() says.
template <typename F>
void with_gate_and_piece(bool gate, int piece, const F& f) {
  const auto with = [&]<int kPiece>() {
    gate ? f.template operator()<true, kPiece>() : f.template operator()<false, kPiece>();
  };
  if (piece == 16)
    with.template operator()<16>();
  else if (piece == 4)
    with.template operator()<4>();
  else
    with.template operator()<0>();
}

// A lane's share of the copies of a tensor's tiles of kRows x kColumns values, kBytes at a time.
template <typename T, int kRows, int kColumns, int kBytes = 16>
struct TileCopy {
  static constexpr int kVector = kBytes / static_cast<int>(sizeof(T)), kPerRow = kColumns / kVector;
  static constexpr int kPieces = kRows * kPerRow, kEach = (kPieces + 31) / 32, kRowsApart = 32 / kPerRow;
  static_assert(kColumns % kVector == 0 && 32 % kPerRow == 0);
  const char* from;
  int row;  // the first of the rows that this lane copies; kRows where it copies none
  bool real_columns;

  // first: the first row's first value; rows are `stride` values apart.
  __device__ TileCopy(const T* first, int64_t stride, int columns, int lane) {
    const int column = lane % kPerRow * kVector;
    row = lane < kPieces ? lane / kPerRow : kRows;
    real_columns = column < columns;
    from = reinterpret_cast<const char*>(first + (row % kRows) * stride + column);
  }
  // Tile number `tile`, of which `rows` rows are real.
  __device__ __forceinline__ void start(T (*to)[kColumns], int tile, int tile_stride, int row_stride, int rows,
                                        int lane) const {
    const char* at = from + static_cast<int64_t>(tile) * tile_stride;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int r = row + i * kRowsApart;
      if (kPieces % 32 == 0 || row < kRows) {
        const bool real = r < rows && real_columns;
        copy_piece<kBytes>(&to[r][lane % kPerRow * kVector],
                           real ? at + static_cast<int64_t>(i * kRowsApart) * row_stride : from, real);
      }
    }
  }
};

// The same for any strides and alignment, value by value.
template <typename T, int kRows, int kColumns>
__device__ __forceinline__ void copy_values(T (*to)[kColumns], const T* from, int64_t row_stride, int64_t column_stride,
                                            int rows, int columns, int lane) {
  for (int i = lane; i < kRows * kColumns; i += 32) {
    const int r = i / kColumns, c = i % kColumns;
    to[r][c] = r < rows && c < columns ? from[r * row_stride + c * column_stride] : narrow<T>(0.0f);
  }
}

// Lanes 4k .. 4k + 3 hold four values each; afterwards lane 4k + i has the sum of the four lanes' i-th.
__device__ __forceinline__ float sum_and_deal(const float (&v)[4], bool odd, bool high) {
  const float a = (odd ? v[1] : v[0]) + __shfl_xor_sync(kAllLanes, odd ? v[0] : v[1], 1);
  const float b = (odd ? v[3] : v[2]) + __shfl_xor_sync(kAllLanes, odd ? v[2] : v[3], 1);
  return (high ? b : a) + __shfl_xor_sync(kAllLanes, high ? a : b, 2);
}

// What a step's gradients are made of, of one channel: sA and sB are the sums over states of dh a h' A and dh B, gated
// is dy silu(z), pre is delta before softplus.
__device__ __forceinline__ void step_gradients(float sA, float sB, float u, float delta, float pre, float gated,
                                               float skip, bool softplus, float& du, float& ddelta) {
  constexpr float kLn2 = 0.6931471805599453f;
  ddelta = fmaf(kLn2, sA, u * sB);
  const float slope = sigmoid_fast(pre);
  ddelta *= softplus ? slope : 1.0f;
  du = fmaf(delta, sB, skip * gated);
}
// y: without D and the gate.
__device__ __forceinline__ float gate_gradient(float dy, float y, float u, float z, float skip) {
  const float sigma = sigmoid_fast(z);
  return dy * fmaf(skip, u, y) * sigma * fmaf(z, 1.0f - sigma, 1.0f);
}

}  // namespace adder::kernels::cuda
