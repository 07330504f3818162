#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "adder/models/mamba_lm.h"
#include "cli/text_tokens.h"

namespace adder::cli {

struct SetScore {
  int64_t examples = 0;
  double accuracy = 0;
  std::optional<double> normed_accuracy;  // choices: by log-probability per byte of the choice
  std::optional<double> perplexity;       // one target: exp of the mean of -log-probability of the whole target
};

// Zero-shot evaluation by log-likelihood of a file of JSON lines (also .xz, .gz, .zst), each of one form:
//   {"ctx": text, "target": text}                      right where each token of the target is the first choice
//   {"ctx": text, "choices": [text, ...], "gold": i}   right where choice i is the most probable
//   {"ctxs": [text, ...], "target": text, "gold": i}   right where the target is most probable after context i
// Continuations carry their leading space. A context and its continuation become tokens together; what of these follows
// the tokens of the context alone is scored. At most `limit` lines, 0 for all. Errors name the file and the line.
SetScore evaluate_set(const models::MambaLM& model, const TextTokens& tokens, const std::filesystem::path& path,
                      int64_t limit = 0);

}  // namespace adder::cli
