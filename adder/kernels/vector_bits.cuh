#pragma once

#include "adder/kernels/cuda_vectors.cuh"

namespace adder::kernels::cuda {

// kCount neighbours as they lie in memory, in whole registers: values of 16 bits that wait in
// registers one by one, as in Packed, are taken apart and put together again.
template <typename T, int kCount>
struct Bits {
  static constexpr int kWords = kCount * static_cast<int>(sizeof(T)) / 4;
  unsigned words[kWords];

  __device__ __forceinline__ void load(const T* from, bool there) {
    Vector<unsigned, kWords> v{};
    if (there) v = *reinterpret_cast<const Vector<unsigned, kWords>*>(from);
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = v.value[i];
  }
  __device__ __forceinline__ void floats(float (&to)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 4) {
        to[i] = __uint_as_float(words[i]);
      } else {
        const float2 two = pair(reinterpret_cast<const T*>(&words[i]));
        to[2 * i] = two.x, to[2 * i + 1] = two.y;
      }
    }
  }
};

}  // namespace adder::kernels::cuda
