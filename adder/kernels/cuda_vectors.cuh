#pragma once

#include "adder/kernels/cuda_numbers.cuh"

// float32 arithmetic by the special function unit, and several neighbours at a time.
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

// kCount neighbours that are read and written at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T value[kCount];
};

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
  using Values = Vector<T, kCount>;
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

// Stores without a branch: one would part the code around it into pieces that the compiler does not interleave.
__device__ __forceinline__ void store_bits_if(bool wanted, void* to, unsigned bits) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.b32 [%1], %2; }" ::"r"(static_cast<int>(wanted)),
               "l"(to), "r"(bits)
               : "memory");
}
__device__ __forceinline__ void store_bits_if(bool wanted, void* to, unsigned short bits) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.b16 [%1], %2; }" ::"r"(static_cast<int>(wanted)),
               "l"(to), "h"(bits)
               : "memory");
}
template <typename T>
__device__ __forceinline__ void store_pair_if(bool wanted, T* to, float a, float b) {
  if constexpr (sizeof(T) == 4) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v2.f32 [%1], {%2, %3}; }" ::"r"(static_cast<int>(wanted)),
        "l"(to), "f"(a), "f"(b)
        : "memory");
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
    store_bits_if(wanted, to, *reinterpret_cast<const unsigned*>(&both));
  } else {
    const __half2 both = __floats2half2_rn(a, b);
    store_bits_if(wanted, to, *reinterpret_cast<const unsigned*>(&both));
  }
}
template <int kCount>
__device__ __forceinline__ void store_floats_if(bool wanted, float* to, const float (&from)[kCount]) {
  static_assert(kCount == 2 || kCount % 4 == 0);
  if constexpr (kCount == 2) {
    store_pair_if(wanted, to, from[0], from[1]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4)
      asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.v4.f32 [%1], {%2, %3, %4, %5}; }" ::"r"(
                       static_cast<int>(wanted)),
                   "l"(to + i), "f"(from[i]), "f"(from[i + 1]), "f"(from[i + 2]), "f"(from[i + 3])
                   : "memory");
  }
}
// The same for what is not read again soon: the first to leave the cache.
template <int kCount>
__device__ __forceinline__ void stream_floats_if(bool wanted, float* to, const float (&from)[kCount]) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 2)
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.cs.v2.f32 [%1], {%2, %3}; }" ::"r"(
                     static_cast<int>(wanted)),
                 "l"(to), "f"(from[0]), "f"(from[1])
                 : "memory");
  else
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %0, 0; @p st.global.cs.v4.f32 [%1], {%2, %3, %4, %5}; }" ::"r"(
                     static_cast<int>(wanted)),
                 "l"(to), "f"(from[0]), "f"(from[1]), "f"(from[2]), "f"(from[3])
                 : "memory");
}

template <typename T, int kCount>
__device__ __forceinline__ void store_values(T* to, const float (&from)[kCount]) {
  if constexpr (kCount * sizeof(T) > 16) {
    store_floats(to, from);
  } else {
    typename Packed<T, kCount>::Values values;
#pragma unroll
    for (int i = 0; i < kCount; ++i) values.value[i] = narrow<T>(from[i]);
    *reinterpret_cast<typename Packed<T, kCount>::Values*>(to) = values;
  }
}

}  // namespace adder::kernels::cuda
