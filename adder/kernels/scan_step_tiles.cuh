#pragma once

#include "adder/kernels/scan_tiles.cuh"

// Tiles of tensors whose steps lie side by side, as other packages have them: (B, D, L), and B and C (B, G, N, L). A
// row of a tile has 16 steps of a channel or of a state.
namespace adder::kernels::cuda {

// Beside the values of plain_piece().
constexpr int kStepsSideBySide = -1;
constexpr int kTileSteps = 16;

// Whether u, delta, z, B and C can be copied so: nothing masked, packed or in reverse, all rows at multiples of 16
// bytes.
template <typename T>
bool steps_are_plain(const SelectiveScanInputs<T>& p) {
  const auto channels = [](const View3<const T>& v) { return copies_by(16, v.data, {v.b, v.d}, v.l); };
  const auto states = [](const View4<const T>& v) { return copies_by(16, v.data, {v.b, v.g, v.n}, v.l); };
  return p.layout.mask.data == nullptr && p.layout.cu_seqlens == nullptr && !p.layout.reverse &&
         p.layout.length * static_cast<int64_t>(sizeof(T)) % 16 == 0 && channels(p.u) && channels(p.delta) &&
         (p.z.data == nullptr || channels(p.z)) && states(p.B_step) && states(p.C_step);
}

// The halves of every other four rows change places, so that equal steps of different rows lie in more banks.
__device__ __forceinline__ constexpr int half_swap(int row) {
  return (row & 4) * 2;
}

template <typename T, int kRows, int kColumns>
__device__ __forceinline__ auto rows_of_steps(T (&tile)[kRows][kColumns]) {
  return reinterpret_cast<T(*)[kTileSteps]>(tile);
}

// A lane's share of the copies of a tensor's tiles of kRows rows, 16 bytes at a time.
template <typename T, int kRows>
struct StepTileCopy {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kPerRow = kTileSteps / kVector;
  static constexpr int kPieces = kRows * kPerRow, kEach = (kPieces + 31) / 32, kRowsApart = 32 / kPerRow;
  const T* from;
  int64_t apart;
  int row, column, rows;

  // first: the first row's first value; rows are `stride` values apart, `rows` of them are real.
  __device__ StepTileCopy(const T* first, int64_t stride, int real_rows, int lane)
      : apart(kRowsApart * stride), row(lane / kPerRow), column(lane % kPerRow * kVector), rows(real_rows) {
    from = first + row * stride + column;
  }
  // The tile from step j0 on, of which `steps` are real.
  __device__ __forceinline__ void start(T (*to)[kTileSteps], int j0, int steps, int lane) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int r = row + i * kRowsApart;
      const bool real = r < rows && column < steps;
      if (kPieces % 32 == 0 || lane < kPieces)
        copy_piece<16>(&to[r][column ^ half_swap(r)], real ? from + i * apart + j0 : from, real);
    }
  }
};

// Two neighbouring values of a row.
template <typename T>
__device__ __forceinline__ float2 two_steps(const T (&row_values)[kTileSteps], int row, int step) {
  return pair(&row_values[step ^ half_swap(row)]);
}

// A lane's part in one of four rounds that prepare tiles of 16 channels: two steps of row lane % 16, delta with its
// bias and softplus, and delta u. Which steps, differs between rows, so that no lanes share a bank.
template <typename T>
struct TwoSteps {
  int row, step;
  float delta[2], input[2];

  __device__ __forceinline__ TwoSteps(const T (*delta_rows)[kTileSteps], const T (*u_rows)[kTileSteps], float bias,
                                      bool softplus, int round, int lane)
      : row(lane % 16), step(lane / 16 * 8 + 2 * (round ^ row / 4)) {
    const float2 raw = two_steps(delta_rows[row], row, step), u = two_steps(u_rows[row], row, step);
    const float before[2] = {raw.x + bias, raw.y + bias}, x[2] = {u.x, u.y};
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float soft = softplus_fast(before[k]);
      delta[k] = softplus ? soft : before[k];
      input[k] = delta[k] * x[k];
    }
  }
};

// Lanes 4k .. 4k + 3 hold four steps of two channels each; afterwards lane 4k + i has the sums of two neighbouring
// steps, from 2 (i / 2) on, of channel i % 2, added in the order of sum_and_deal().
__device__ __forceinline__ void sum_and_deal_pairs(float (&out)[2], const float (&v)[2][4], bool odd, bool high) {
  float a[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) a[k] = (odd ? v[1][k] : v[0][k]) + __shfl_xor_sync(kAllLanes, odd ? v[0][k] : v[1][k], 1);
#pragma unroll
  for (int k = 0; k < 2; ++k) out[k] = (high ? a[2 + k] : a[k]) + __shfl_xor_sync(kAllLanes, high ? a[k] : a[2 + k], 2);
}

}  // namespace adder::kernels::cuda
