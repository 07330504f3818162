#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adder/models/mamba_lm.h"

namespace adder::infer {

class RecordedStep;

// What a session needs to go on: a value, to be kept, copied and set again, in this session or another of the same
// model. S rows; without rows it is the beginning. The tensors are made in inference mode.
struct DecodeState {
  models::LMState lm;    // of each layer
  torch::Tensor logits;  // (S, V) float32, after each row's last token

  int64_t rows() const { return logits.defined() ? logits.size(0) : 0; }  // S
  // Copies of these rows, in this order; a row may come several times.
  DecodeState select(const std::vector<int64_t>& rows) const;
};

// Rows of tokens on their way through a model, each with its recurrent state: what went in is never computed again.
// The model is run without gradient and without dropout, and its training mode is left as it was. On a GPU single steps
// are recorded: weights that change between two of them need a session of their own.
class DecodeSession {
 public:
  ~DecodeSession();
  DecodeSession(DecodeSession&&) noexcept;
  DecodeSession& operator=(DecodeSession&&) noexcept;

  // At most `piece_tokens` tokens go through the model at once, which bounds its memory; 0: 4,096 on a CPU, 16,384 on a
  // GPU.
  explicit DecodeSession(models::MambaLM model, int64_t piece_tokens = 0);

  // Feeds row i the tokens prompts[i], in as few passes as piece_tokens allows. A session without rows gets one for
  // each prompt, from the zero state, and each needs a token; else each row goes on from where it is, and stays there
  // where its prompt is empty. Logits (S, V) float32 after each row's last token, on the model's device.
  // The tensor stays as it is until the next call.
  const torch::Tensor& prefill(const std::vector<std::vector<int64_t>>& prompts);
  // One more token for each row: the same as prefill, as one step.
  const torch::Tensor& step(const std::vector<int64_t>& tokens);
  // Goes on with these rows, in this order; a row may come several times.
  void select(const std::vector<int64_t>& rows);

  int64_t rows() const { return state_.rows(); }                       // S, 0 before the first prefill
  const models::MambaLM& model() const { return model_; }              // as it was given
  int64_t vocab_size() const { return model_->options().vocab_size; }  // V
  DecodeState state() const;                                           // a copy
  // A default one begins anew.
  void set_state(DecodeState state);

 private:
  void fetch_state();

  models::MambaLM model_;
  int64_t piece_tokens_;
  torch::Device device_;
  DecodeState state_;  // of its tensors only the logits count while `ahead_`
  std::unique_ptr<RecordedStep> recorded_step_;
  bool ahead_ = false;  // recorded_step_ has the state
};

}  // namespace adder::infer
