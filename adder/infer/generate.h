#pragma once

#include <functional>

#include "adder/infer/decode_session.h"
#include "adder/infer/sampling.h"

namespace adder::infer {

// How prompts are continued.
struct GenerateOptions {
  SamplingOptions sampling;  // how tokens are chosen, and how many
  int64_t start_token = -1;  // the token that an empty prompt stands for; -1: an empty prompt is an error
  int64_t piece_tokens = 0;  // prompt tokens that go through the model at once, at most; 0: 4096, on a GPU 16384
  // What the draws of each row are keyed by; empty: 0, 1, ... On the CPU a row with the same number gives the same
  // tokens in any batch: no sum of its logits depends on the other rows. On a GPU products of other numbers of rows
  // may sum in another order.
  std::vector<int64_t> row_numbers = {};

  // One table: the fields of `sampling` beside its own.
  void visit(core::FieldVisitor& v);
};

// What ended a row: a token of stop_tokens, max_tokens, or the callback.
enum class FinishReason { kStopToken, kMaxTokens, kCallback };

// What a callback says: go on, end this row, or end all.
enum class Proceed { kContinue, kStopRow, kStopAll };

// Gets each token as it is chosen: the row's place in `prompts` and the token, rows in order within a step.
using TokenCallback = std::function<Proceed(int64_t row, int64_t token)>;

// The continuation of one prompt.
struct GeneratedRow {
  std::vector<int64_t> tokens;                     // without the prompt and without the stop token
  FinishReason finish = FinishReason::kMaxTokens;  // what ended it
};

// What generate() gives.
struct Generation {
  std::vector<GeneratedRow> rows;  // of each prompt
  double prompt_seconds = 0;       // for the prompts
  int64_t prompt_tokens = 0;       // over all rows
  double decode_seconds = 0;       // after the prompts: choosing tokens, callbacks and steps
  int64_t decode_tokens = 0;       // tokens that single steps were made for, over all rows
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
