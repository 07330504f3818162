#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "adder/models/mamba_lm.h"

namespace adder::tasks {

// Rows of tokens and what is to be predicted.
struct TaskBatch {
  torch::Tensor input;   // (B, L) int64
  torch::Tensor target;  // (B, L) int64, -100: not scored
  torch::Tensor starts;  // (B, L) bool where the state is reset inside a row, or undefined
  bool fresh = true;     // the rows begin from the zero state, not from where the batch before ended
  nlohmann::json after;  // the source's position behind this batch
};

// A row of batches that can be continued from a position. Batches depend on the seed and the position alone.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Nothing after the last; training sources have no last.
  virtual std::optional<TaskBatch> next() = 0;
  // Continues behind a batch: TaskBatch::after of a source made alike. Another position is an error.
  virtual void seek(const nlohmann::json& position) = 0;
};

// A task: its data, and what its figures are called.
class Task {
 public:
  virtual ~Task() = default;
  virtual int64_t vocab_size() const = 0;  // all tokens are below
  // True where a token is a byte: then bits per byte are reported, and text can be generated.
  virtual bool bytes() const { return false; }
  // True where accuracy is of whole sequences as well as of tokens.
  virtual bool scores_sequences() const { return false; }
  // Batches of `batch` rows without end; the same seed gives the same ones.
  virtual std::unique_ptr<BatchSource> training(int64_t batch, uint64_t seed) const = 0;
  // The held-out data, always the same, in batches of at most `batch` rows; `carried` (where the task has a running
  // text): one row whose state is carried from window to window.
  virtual std::unique_ptr<BatchSource> evaluation(int64_t batch, bool carried) const = 0;
  // Tokens of one training row.
  virtual int64_t length() const = 0;
};

// Sequences made on the fly: number i of a seed is the same whatever the batch.
class SequenceSource : public BatchSource {
 public:
  // count < 0: without end.
  SequenceSource(int64_t batch, int64_t length, uint64_t seed, int64_t count);
  std::optional<TaskBatch> next() final;
  void seek(const nlohmann::json& position) final;

 protected:
  // Writes sequence `index` of `seed`: `length` tokens each of input and target, kIgnored where there is none.
  virtual void make(uint64_t seed, uint64_t index, int64_t* input, int64_t* target) const = 0;

 private:
  int64_t batch_, length_;
  uint64_t seed_;
  int64_t count_, next_ = 0;
};

// The target of a step that is not scored.
inline constexpr int64_t kIgnored = -100;

}  // namespace adder::tasks
