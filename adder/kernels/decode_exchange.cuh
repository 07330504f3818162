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
  using Loaded = Bits[kVector];
  static __device__ __forceinline__ void publish(Bits* to, float value, unsigned round) {
    const Bits bits = static_cast<Bits>(round) << 32 | __float_as_uint(value);
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(bits) : "memory");
  }
  // Predicated by hand: a branch would make each load wait for the one before.
  static __device__ __forceinline__ void load_if(bool wanted, const Bits* from, Loaded& x) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0; @p ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2]; }"
                 : "+l"(x[0]), "+l"(x[1])
                 : "l"(from), "r"(static_cast<int>(wanted))
                 : "memory");
  }
  static __device__ __forceinline__ bool is_of(const Loaded& x, unsigned round) {
    return static_cast<unsigned>(x[0] >> 32) == round && static_cast<unsigned>(x[1] >> 32) == round;
  }
  static __device__ __forceinline__ float value(Bits x) { return __uint_as_float(static_cast<unsigned>(x)); }
};

template <>
struct Word<bfloat16> {
  using Bits = unsigned;
  static constexpr int kVector = 4;
  using Loaded = Bits[kVector];
  static __device__ __forceinline__ void publish(Bits* to, bfloat16 value, unsigned round) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(round << 16 | value.bits) : "memory");
  }
  static __device__ __forceinline__ void load_if(bool wanted, const Bits* from, Loaded& x) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0; @p ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "+r"(x[0]), "+r"(x[1]), "+r"(x[2]), "+r"(x[3])
                 : "l"(from), "r"(static_cast<int>(wanted))
                 : "memory");
  }
  static __device__ __forceinline__ bool is_of(const Loaded& x, unsigned round) {
    unsigned other = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) other |= (x[i] >> 16) ^ (round & 0xFFFFu);
    return other == 0;
  }
  static __device__ __forceinline__ bfloat16 value(Bits x) { return {static_cast<uint16_t>(x)}; }
};

// Waits for `vectors` loads of neighbouring words, `threads` threads together: use(vector, values, beside(vector)) for
// each; `beside` asks for something else meanwhile.
template <typename T, int kAtOnce, typename Beside, typename Use>
__device__ __forceinline__ void take_words_by(const typename Word<T>::Bits* words, int vectors, unsigned round,
                                              int thread, int threads, const Beside& beside, const Use& use) {
#pragma unroll 1
  for (int first = thread; first < vectors; first += kAtOnce * threads) {
    typename Word<T>::Loaded loaded[kAtOnce] = {};
    decltype(beside(0)) others[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * threads < vectors) others[j] = beside(first + j * threads);
    unsigned missing = (1u << min(kAtOnce, (vectors - first + threads - 1) / threads)) - 1;
    do {
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        Word<T>::load_if((missing >> j & 1) != 0, words + (first + j * threads) * Word<T>::kVector, loaded[j]);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
        if (Word<T>::is_of(loaded[j], round)) missing &= ~(1u << j);
    } while (missing != 0);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j * threads >= vectors) continue;
      T values[Word<T>::kVector];
#pragma unroll
      for (int k = 0; k < Word<T>::kVector; ++k) values[k] = Word<T>::value(loaded[j][k]);
      use(first + j * threads, values, others[j]);
    }
  }
}
// As many at once as a thread has of a small model, or of one of 2.8B: each round of looks costs what it asks for.
template <typename T, typename Beside, typename Use>
__device__ __forceinline__ void take_words(const typename Word<T>::Bits* words, int vectors, unsigned round, int thread,
                                           int threads, const Beside& beside, const Use& use) {
  if (vectors <= 2 * threads)
    take_words_by<T, 2>(words, vectors, round, thread, threads, beside, use);
  else
    take_words_by<T, 5>(words, vectors, round, thread, threads, beside, use);
}

}  // namespace adder::kernels::cuda
