#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/transpose_cuda.h"

namespace adder::kernels::cuda {
namespace {

constexpr int kTile = 64, kThreads = 256;

// Where tile i lies: batch row, first row, first column.
struct TileOf {
  int64_t b, m0, n0;

  __device__ TileOf(int64_t i, int64_t row_tiles, int64_t column_tiles, int64_t tiles) {
    if (tiles >> 31 == 0) {  // a long division costs as much as a tile's copies
      const auto k = static_cast<unsigned>(i), columns = static_cast<unsigned>(column_tiles),
                 rows = static_cast<unsigned>(row_tiles);
      n0 = int64_t{k % columns} * kTile, m0 = int64_t{k / columns % rows} * kTile, b = k / columns / rows;
    } else {
      n0 = i % column_tiles * kTile, m0 = i / column_tiles % row_tiles * kTile, b = i / column_tiles / row_tiles;
    }
  }
};

// Elements of 2 bytes, rows and columns in whole pieces of 8: each thread reads 8 columns of two neighbouring rows and
// lays down the eight pairs, so that four words side by side are what is written. Words lie so that neither side's
// lanes share a bank.
__global__ void __launch_bounds__(kThreads)
    transpose_pairs(const Transpose p, int64_t row_tiles, int64_t column_tiles, int64_t tiles) {
  constexpr int kWords = kTile / 2, kChunk = 4;  // of a row of the result in the tile; in 16 bytes
  __shared__ __align__(16) unsigned words[kTile][kWords];
  const auto chunk_of = [](int n, int chunk) { return (chunk ^ (n / 8 % 8)) * kChunk; };
  const int thread = static_cast<int>(threadIdx.x), in_n = thread % 8 * 8, pair = thread / 8;
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const TileOf at(i, row_tiles, column_tiles, tiles);
    const int64_t rows = p.rows - at.m0, columns = p.columns - at.n0;
    const auto* const from =
        static_cast<const uint16_t*>(p.from) + at.b * p.from_batch + at.n0 + in_n + (at.m0 + 2 * pair) * p.from_row;
    __syncthreads();  // the tile before has been written
    if (in_n < columns && 2 * pair < rows) {
      const uint4 upper = *reinterpret_cast<const uint4*>(from),
                  lower = *reinterpret_cast<const uint4*>(from + p.from_row);
      const unsigned of_upper[4] = {upper.x, upper.y, upper.z, upper.w},
                     of_lower[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
      for (int k = 0; k < 8; ++k)
        words[in_n + k][chunk_of(in_n + k, pair / kChunk) + pair % kChunk] =
            __byte_perm(of_upper[k / 2], of_lower[k / 2], k % 2 == 0 ? 0x5410 : 0x7632);
    }
    __syncthreads();
    auto* const to = static_cast<uint16_t*>(p.to) + (at.b * p.columns + at.n0) * p.rows + at.m0;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = thread / 8 + half * kTile / 2, chunk = thread % 8;
      if (n < columns && 8 * chunk < rows)
        *reinterpret_cast<uint4*>(to + n * p.rows + 8 * chunk) =
            *reinterpret_cast<const uint4*>(&words[n][chunk_of(n, chunk)]);
    }
  }
}

// A tile of 64 x 64 elements through shared memory. Both sides move 16 bytes a thread: four neighbours have 64 bytes of
// one row. kVectors: all rows begin at multiples of 16 bytes.
template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    transpose_tiles(const Transpose p, int64_t row_tiles, int64_t column_tiles, int64_t tiles) {
  constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kPerRow = kTile / kEach, kVectorsEach = kTile * kPerRow;
  // Rows lie so that what the lanes of a warp read of eight rows at once is in different banks.
  constexpr int kPitch = kTile + (sizeof(T) == 2 ? 2 : 1);
  __shared__ T tile[kTile][kPitch];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = blockIdx.x; i < tiles; i += gridDim.x) {
    const TileOf at_tile(i, row_tiles, column_tiles, tiles);
    const int64_t m0 = at_tile.m0, n0 = at_tile.n0;
    const T* const from = static_cast<const T*>(p.from) + at_tile.b * p.from_batch + m0 * p.from_row + n0;
    T* const to = static_cast<T*>(p.to) + (at_tile.b * p.columns + n0) * p.rows + m0;
    const int64_t rows = min(p.rows - m0, int64_t{kTile}), columns = min(p.columns - n0, int64_t{kTile});
    __syncthreads();  // the tile before has been written
#pragma unroll
    for (int v = thread; v < kVectorsEach; v += kThreads) {
      const int m = v / kPerRow, n = v % kPerRow * kEach;
      if (m >= rows || n >= columns) continue;
      const T* const at = from + m * p.from_row + n;
      if (kVectors && n + kEach <= columns) {
        const auto values = *reinterpret_cast<const Vector<T, kEach>*>(at);
#pragma unroll
        for (int k = 0; k < kEach; ++k) tile[m][n + k] = values.value[k];
      } else {
        for (int k = 0; k < kEach && n + k < columns; ++k) tile[m][n + k] = at[k];
      }
    }
    __syncthreads();
#pragma unroll
    for (int v = thread; v < kVectorsEach; v += kThreads) {
      const int n = v / 4 % kTile, m = (v / 4 / kTile * 4 + v % 4) * kEach;
      if (n >= columns || m >= rows) continue;
      T* const at = to + n * p.rows + m;
      if (kVectors && m + kEach <= rows) {
        Vector<T, kEach> values;
#pragma unroll
        for (int k = 0; k < kEach; ++k) values.value[k] = tile[m + k][n];
        *reinterpret_cast<Vector<T, kEach>*>(at) = values;
      } else {
        for (int k = 0; k < kEach && m + k < rows; ++k) at[k] = tile[m + k][n];
      }
    }
  }
}

template <typename T>
void launch(const Transpose& p, CudaStream stream) {
  const int64_t row_tiles = (p.rows + kTile - 1) / kTile, column_tiles = (p.columns + kTile - 1) / kTile;
  const int64_t tiles = p.batch * row_tiles * column_tiles;
  if (tiles == 0) return;
  const auto whole = [](const void* data, int64_t elements) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && elements * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  };
  const bool vectors = whole(p.from, p.from_batch) && whole(p.from, p.from_row) && whole(p.to, p.rows);
  auto kernel = vectors ? transpose_tiles<T, true> : transpose_tiles<T, false>;
  if (sizeof(T) == 2 && vectors && p.columns % 8 == 0) kernel = transpose_pairs;
  kernel<<<grid_for(tiles, 1), kThreads, 0, stream>>>(p, row_tiles, column_tiles, tiles);
  check_launch("transpose");
}

}  // namespace

void transpose(const Transpose& p, CudaStream stream) {
  switch (p.element_size) {
    case 2:
      return launch<uint16_t>(p, stream);
    case 4:
      return launch<uint32_t>(p, stream);
    case 8:
      return launch<uint64_t>(p, stream);
    default:
      throw std::invalid_argument("transpose: elements must have 2, 4 or 8 bytes, got " +
                                  std::to_string(p.element_size));
  }
}

}  // namespace adder::kernels::cuda
