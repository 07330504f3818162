#pragma once

#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/sample_tokens.h"

// Comparing logits, and handing over the token that was chosen.
namespace adder::kernels::cuda {

// Keys order as the logits do.
__device__ __forceinline__ unsigned key_of(float x) {
  const unsigned bits = __float_as_uint(x == 0.0f ? 0.0f : x);  // -0 is 0
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
// With the token: of equal logits the smaller id has the larger key.
__device__ __forceinline__ unsigned long long key_of(float x, int token) {
  return static_cast<unsigned long long>(key_of(x)) << 32 | static_cast<unsigned>(~token);
}

// Whose embedding is taken: whoever chose a token says where there was none to choose.
__device__ __forceinline__ int64_t token_or_first(int64_t token, int vocab) {
  return token >= 0 && token < vocab ? token : 0;
}

__device__ __forceinline__ void put_copy(const TokenCopies& copies, int64_t rows, int64_t row, int64_t token) {
  if (copies.tokens != nullptr) copies.tokens[copies.turns[row]++ % copies.slots * rows + row] = token;
}

}  // namespace adder::kernels::cuda
