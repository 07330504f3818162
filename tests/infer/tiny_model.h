#pragma once

#include <torch/torch.h>

#include <string>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/random.h"
#include "adder/models/mamba_lm.h"

namespace adder::infer::tests {

using Tokens = std::vector<int64_t>;

inline constexpr int64_t kVocab = 37;  // padded to 40

// A model whose logits are spread enough that what it says depends on what came before.
inline models::MambaLM tiny_model(double dropout = 0) {
  torch::manual_seed(7);
  models::MambaLMOptions options;
  options.d_model = 24;
  options.n_layer = 3;
  options.vocab_size = kVocab;
  options.tie_embeddings = false;  // a tied head mostly repeats the last token
  options.residual_dropout = dropout;
  options.embedding_dropout = dropout;
  options.mixer.d_state = 5;
  models::MambaLM model(options);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->named_parameters())
    if (parameter.key() == "lm_head.weight") parameter.value().mul_(3);
  return model;
}

inline Tokens random_tokens(int64_t count, uint64_t seed) {
  core::RandomStream random(seed, 1);
  Tokens tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int64_t>(random.below(kVocab)));
  return tokens;
}

inline std::vector<Tokens> random_prompts(const std::vector<int64_t>& lengths) {
  std::vector<Tokens> prompts;
  for (const int64_t length : lengths) prompts.push_back(random_tokens(length, prompts.size()));
  return prompts;
}

// Logits (L, V) after each token, all computed at once.
inline torch::Tensor all_logits(models::MambaLM model, const Tokens& tokens) {
  const torch::NoGradGuard no_grad;
  return model->forward(torch::tensor(tokens, torch::kLong).unsqueeze(0)).first[0];
}

inline Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// The largest difference, so that a failure says how far off it is.
inline double distance(const torch::Tensor& a, const torch::Tensor& b) {
  if (a.sizes() != b.sizes())
    fail("shapes ({}) and ({}) differ", fmt::join(a.sizes(), ", "), fmt::join(b.sizes(), ", "));
  return a.numel() == 0 ? 0 : (a - b).abs().max().item<double>();
}

}  // namespace adder::infer::tests
