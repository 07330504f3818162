#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_numbers.cuh"
#include "adder/kernels/selective_scan_cuda.h"
#include "adder/kernels/sequence_rows.cuh"

// What the fast scans of both directions share: tiles of a few steps and a warp's channels, copied asynchronously into
// shared memory by the warp that uses them, so that warps never wait for one another.
namespace adder::kernels::cuda {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float sigmoid_fast(float x) {
  return reciprocal_fast(1.0f + exp2_fast(-kLog2E * x));
}
// log(1 + e^x) = max(x, 0) + log1p(e^-|x|); the polynomial is log1p(e) / e on [0, 1] to 3e-7. NaN stays.
__device__ __forceinline__ float softplus_fast(float x) {
  const float e = exp2_fast(-kLog2E * fabsf(x));
  float p = fmaf(e, -0.008539185859262943f, 0.04408956319093704f);
  p = fmaf(e, p, -0.10768163204193115f);
  p = fmaf(e, p, 0.17745237052440643f);
  p = fmaf(e, p, -0.24495461583137512f);
  p = fmaf(e, p, 0.33275479078292847f);
  p = fmaf(e, p, -0.4999740421772003f);
  p = fmaf(e, p, 0.9999998211860657f);
  return fmaf(e, p, fmaxf(x, 0.0f));
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}
// 16 bytes, or zeros where `real` is false; nothing is read then.
__device__ __forceinline__ void copy16(void* to, const void* from, bool real) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(real ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void end_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `kPending` groups of this thread's copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Two neighbours in memory as floats.
template <typename T>
__device__ __forceinline__ float2 pair(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return *reinterpret_cast<const float2*>(p);
  } else {
    const unsigned both = *reinterpret_cast<const unsigned*>(p);
    if constexpr (std::is_same_v<T, bfloat16>)
      return {__uint_as_float(both << 16), __uint_as_float(both & 0xFFFF0000u)};
    else
      return __half22float2(*reinterpret_cast<const __half2*>(&both));
  }
}
template <typename T>
__device__ __forceinline__ void store_pair(T* p, float a, float b) {
  if constexpr (sizeof(T) == 4) {
    *reinterpret_cast<float2*>(p) = {a, b};
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(a, b);
  } else {
    *reinterpret_cast<__half2*>(p) = __floats2half2_rn(a, b);
  }
}

// How far apart a tensor's tiles are: bytes from one tile's first row to the next one's, in the direction of time.
// The fast path takes strides for which this fits.
struct TileStrides {
  int u, delta, z, B, C, y;
};

// Whether rows start at multiples of 16 bytes and their elements lie side by side.
template <typename T>
bool copies_by_16(const T* data, std::initializer_list<int64_t> strides, int64_t unit) {
  constexpr int64_t kVector = 16 / static_cast<int64_t>(sizeof(T));
  bool fits = reinterpret_cast<uintptr_t>(data) % 16 == 0 && unit == 1;
  for (const int64_t stride : strides) fits = fits && stride % kVector == 0;
  return fits;
}

// A lane's share of the copies of a tensor's tiles of kRows x kColumns values.
template <typename T, int kRows, int kColumns>
struct TileCopy {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T)), kPerRow = kColumns / kVector;
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
        copy16(&to[r][lane % kPerRow * kVector], real ? at + static_cast<int64_t>(i * kRowsApart) * row_stride : from, real);
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

template <int kCount>
__device__ __forceinline__ void load_floats(float (&to)[kCount], const float* from) {
  static_assert(kCount == 1 || kCount == 2 || kCount % 4 == 0);
  if constexpr (kCount == 1) {
    to[0] = *from;
  } else if constexpr (kCount == 2) {
    const float2 v = *reinterpret_cast<const float2*>(from);
    to[0] = v.x, to[1] = v.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 v = *reinterpret_cast<const float4*>(from + i);
      to[i] = v.x, to[i + 1] = v.y, to[i + 2] = v.z, to[i + 3] = v.w;
    }
  }
}
template <int kCount>
__device__ __forceinline__ void store_floats(float* to, const float (&from)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount % 4 == 0);
  if constexpr (kCount == 1) {
    *to = from[0];
  } else if constexpr (kCount == 2) {
    *reinterpret_cast<float2*>(to) = {from[0], from[1]};
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      *reinterpret_cast<float4*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
  }
}

// kCount neighbours in memory as they are, and as floats later: what waits in registers waits packed.
template <typename T, int kCount>
struct Packed {
  static_assert(kCount * sizeof(T) <= 16);
  struct alignas(kCount * sizeof(T)) Values {
    T value[kCount];
  };
  Values values;
  __device__ __forceinline__ void load(const T* p) { values = *reinterpret_cast<const Values*>(p); }
  __device__ __forceinline__ void floats(float (&to)[kCount]) const {
    if constexpr (kCount == 1) {
      to[0] = widen(values.value[0]);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; i += 2) {
        const float2 two = pair(&values.value[i]);
        to[i] = two.x, to[i + 1] = two.y;
      }
    }
  }
};

// Lanes 4k .. 4k + 3 hold four values each; afterwards lane 4k + i has the sum of the four lanes' i-th.
__device__ __forceinline__ float sum_and_deal(const float (&v)[4], bool odd, bool high) {
  const float a = (odd ? v[1] : v[0]) + __shfl_xor_sync(kAllLanes, odd ? v[0] : v[1], 1);
  const float b = (odd ? v[3] : v[2]) + __shfl_xor_sync(kAllLanes, odd ? v[2] : v[3], 1);
  return (high ? b : a) + __shfl_xor_sync(kAllLanes, high ? a : b, 2);
}

}  // namespace adder::kernels::cuda
