#pragma once

#include <cstdint>
#include <vector>

#include "adder/models/mamba_lm.h"

namespace adder::infer {

// Tokens and what they follow; neither may be empty.
struct LikelihoodRequest {
  std::vector<int64_t> context;       // what comes before
  std::vector<int64_t> continuation;  // what is scored
};

// The score of one request.
struct Likelihood {
  double log_probability = 0;  // of the continuation after the context, nats
  bool first_choice = true;    // each of its tokens is the model's most probable one
};

// What the model holds of continuations, as zero-shot evaluations ask. Requests that follow one another with the same
// context share its pass. Up to `batch_tokens` tokens go through the model at once (a longer request by itself); 0:
// 4,096 on a CPU, 65,536 on a GPU. Throws on tokens outside the vocabulary before anything is run.
std::vector<Likelihood> likelihoods(const models::MambaLM& model, const std::vector<LikelihoodRequest>& requests,
                                    int64_t batch_tokens = 0);

}  // namespace adder::infer
