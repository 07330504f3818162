#pragma once

#include "adder/kernels/cuda_numbers.cuh"

// Values that all blocks of a running kernel tell each other: a value travels in one word with the number of the round
// that it belongs to, so that who waits for it needs no barrier, no fence and no second trip to memory. A word may be
// written again once the writer knows that all have read it.
namespace adder::kernels::cuda {

template <typename T>
struct Word;

template <>
struct Word<float> {
  using Bits = unsigned long long;
  static constexpr int kVector = 2;  // words in a load
  static __device__ __forceinline__ void publish(Bits* to, float value, unsigned round) {
    const Bits bits = static_cast<Bits>(round) << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(bits) : "memory");
  }
  static __device__ __forceinline__ bool load(const Bits* from, unsigned round, float (&values)[kVector]) {
    Bits a, b;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
    values[0] = __uint_as_float(static_cast<unsigned>(a)), values[1] = __uint_as_float(static_cast<unsigned>(b));
    return static_cast<unsigned>(a >> 32) == round && static_cast<unsigned>(b >> 32) == round;
  }
};

template <>
struct Word<bfloat16> {
  using Bits = unsigned;
  static constexpr int kVector = 4;
  static __device__ __forceinline__ void publish(Bits* to, bfloat16 value, unsigned round) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(round << 16 | value.bits) : "memory");
  }
  static __device__ __forceinline__ bool load(const Bits* from, unsigned round, bfloat16 (&values)[kVector]) {
    unsigned x[kVector];
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "l"(from)
                 : "memory");
    unsigned other = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      values[i].bits = static_cast<uint16_t>(x[i]);
      other |= (x[i] >> 16) ^ (round & 0xFFFFu);
    }
    return other == 0;
  }
};

// Waits for `vectors` loads of neighbouring words, `threads` threads together: use(vector, values, beside(vector)) for
// each; `beside` asks for something else meanwhile.
template <typename T, int kAtOnce, typename Beside, typename Use>
__device__ __forceinline__ void take_words(const typename Word<T>::Bits* words, int vectors, unsigned round, int thread,
                                           int threads, const Beside& beside, const Use& use) {
#pragma unroll 1
  for (int first = thread; first < vectors; first += kAtOnce * threads) {
    T values[kAtOnce][Word<T>::kVector];
    decltype(beside(0)) others[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * threads < vectors) others[j] = beside(first + j * threads);
    bool all;
    do {
      all = true;
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const int v = first + j * threads;
        if (v < vectors) all &= Word<T>::load(words + v * Word<T>::kVector, round, values[j]);
      }
    } while (!all);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * threads < vectors) use(first + j * threads, values[j], others[j]);
  }
}

}  // namespace adder::kernels::cuda
