#pragma once

#include <cstdint>

#include "adder/kernels/cuda_stream.h"

// The next token of each row, as infer::SamplingOptions defines it. Logits, penalised, divided and exponentiated, are
// float32; probabilities are counted in units of 2^-40 of the largest, so that their sums are exact and no order of
// threads matters. A token below that is never chosen.
namespace adder::kernels {

// Where the tokens of a step go beside the next step's input: to memory of the host that the device can write to, so
// that the host need not ask for a copy. Null: nowhere.
struct TokenCopies {
  int64_t* tokens = nullptr;  // (slots, rows): those of row r in slot turns[r] modulo slots
  int64_t slots = 1;
  int64_t* turns = nullptr;  // (rows), counted on
};

struct SampleTokens {
  int64_t rows, vocab;   // vocab up to 2^23, so that the sum of probabilities fits into 64 bits
  const float* logits;   // (rows, vocab)
  const double* places;  // (rows) in [0, 1): where in the sum of probabilities the token is; not read at temperature 0
  double temperature, top_p, min_p, repetition_penalty;
  int64_t top_k;
  uint8_t* seen;    // (rows, vocab): 1 where a token has been; the one chosen is added. Null without a penalty
  int64_t* tokens;  // (rows), out; kNotFinite or kNoneFinite where there is none
  TokenCopies copies;
};

constexpr int64_t kNotFinite = -1;   // a logit is NaN or +inf
constexpr int64_t kNoneFinite = -2;  // every logit is -inf

namespace cuda {

void sample_tokens(const SampleTokens& p, CudaStream stream);

}  // namespace cuda
}  // namespace adder::kernels
