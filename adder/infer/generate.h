#pragma once

#include <functional>

#include "adder/infer/decode_session.h"
#include "adder/infer/sampling.h"

namespace adder::infer {

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t start_token = -1;
  int64_t piece_tokens = 0;
  // What the draws of each row are keyed by; empty: 0, 1, ... On the CPU a row with the same number gives the same
  // tokens in any batch: no sum of its logits depends on the other rows. On a GPU products of other numbers of rows
  // may sum in another order.
  std::vector<int64_t> row_numbers = {};

  // One table: the fields of `sampling` beside its own.
  void visit(core::FieldVisitor& v);
};

enum class FinishReason { kStopToken, kMaxTokens, kCallback };

enum class Proceed { kContinue, kStopRow, kStopAll };

// Gets each token as it is chosen: the row's place in `prompts` and the token, rows in order within a step.
using TokenCallback = std::function<Proceed(int64_t row, int64_t token)>;

struct GeneratedRow {
  std::vector<int64_t> tokens;  // without the prompt and without the stop token
  FinishReason finish = FinishReason::kMaxTokens;
};

struct Generation {
  std::vector<GeneratedRow> rows;
  double prompt_seconds = 0;
  int64_t prompt_tokens = 0;
  double decode_seconds = 0;  // after the prompts: choosing tokens, callbacks and steps
  int64_t decode_tokens = 0;  // tokens that single steps were made for, over all rows
};

// Continues each prompt until a stop token, max_tokens or the callback ends its row. Prompts go through the model
// packed, then each step takes one token a row; rows that are done leave the batch. An empty prompt is start_token.
// Throws, before anything is run, on tokens outside the vocabulary and on an empty prompt without start_token.
Generation generate(const models::MambaLM& model, const std::vector<std::vector<int64_t>>& prompts,
                    const GenerateOptions& options, const TokenCallback& callback = {});

// The same from where the session is: row i goes on with prompts[i], which may be empty. The repetition penalty knows
// of no earlier tokens, and piece_tokens is the session's. The session loses the rows that are done, in the end all:
// keep its state() where it is needed again.
Generation generate(DecodeSession& session, const std::vector<std::vector<int64_t>>& prompts,
                    const GenerateOptions& options, const TokenCallback& callback = {});

}  // namespace adder::infer
