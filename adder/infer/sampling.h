#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "adder/core/options.h"

namespace adder::infer {

// How the next token is chosen from a row's logits. The steps, in this order:
//  1. repetition_penalty r: the logit of each token of the history, however often it is there, is divided by r where
//     positive and multiplied by r otherwise.
//  2. temperature T: 0 takes the first of the largest logits, and nothing below matters. Otherwise every logit is
//     divided by T.
//  3. top_k k: the k largest logits stay; where equal ones straddle the border, those of the lower ids.
//  4. top_p p: of the softmax over what stays, walked from the largest down (equal ones by id), tokens stay until
//     their probabilities sum to p or more; the first always stays.
//  5. min_p m: of what stays, tokens at least m times as probable as the most probable one stay.
//  6. One token is drawn from the softmax over what stays, walked by id.
struct SamplingOptions {
  double temperature = 1;         // logits are divided by it; 0 takes the most probable token
  int64_t top_k = 0;              // only the k most probable tokens; 0: all
  double top_p = 1;               // only the most probable tokens that sum to this probability; 1: all
  double min_p = 0;               // only tokens with this share of the largest probability; 0: all
  double repetition_penalty = 1;  // logits of earlier tokens are divided by it if positive, multiplied if not; 1: off
  int64_t seed = 0;               // seed of the draws
  int64_t max_tokens = 256;       // tokens generated for a row at most
  std::vector<int64_t> stop_tokens = {};  // end a row, and are not part of its output

  void visit(core::FieldVisitor& v);
  // Throws where a value breaks its field's rule.
  void check() const;
};

// A token that may be drawn.
struct Candidate {
  int64_t token;       // its id
  double logit;        // after penalty and temperature, less the largest
  double probability;  // sums to 1 over the candidates
};

// The tokens that a draw chooses among, by id; none has probability 0. Logits are finite or -inf (never chosen); NaN,
// +inf, or nothing finite is an error. `history`: the row's tokens so far, for the repetition penalty.
std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options,
                                  std::span<const int64_t> history);

// One token. The draw is a function of (options.seed, row, step) alone, so that neither the batch nor an earlier draw
// matters.
int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, int64_t row, int64_t step,
                     std::span<const int64_t> history);

}  // namespace adder::infer
