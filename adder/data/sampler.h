#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>

#include "adder/data/token_stream.h"

// Samplers cut a range of n tokens into batches of windows. The window that begins at b has the inputs [b, b + length)
// and, as targets, the tokens one further, so that n tokens hold n - 1 targets. All are functions of the seed and a
// position: no order of calls, no thread matters.
namespace adder::data {

// Where a sampler stands; a sampler made alike continues from it with the same batches.
struct Position {
  int64_t epoch = 0;  // passes over the range that are complete
  int64_t index = 0;  // what comes next in this pass: a window, or a step of all lanes
  int64_t step = 0;   // batches given out in all
  bool operator==(const Position&) const = default;
};
void to_json(nlohmann::json& json, const Position& position);    // for checkpoints
void from_json(const nlohmann::json& json, Position& position);  // what to_json() wrote

// Some windows of one length.
struct Batch {
  torch::Tensor input;   // (B, L) int64
  torch::Tensor target;  // (B, L) int64
  torch::Tensor starts;  // (B, L) bool, true where a document starts; undefined unless asked for
  bool fresh = true;     // the rows do not go on where those of the batch before ended: begin from the zero state
  Position after;        // continues behind this batch: what a checkpoint keeps once the batch is used
};

// Where segments start in the rows of `starts` laid one after another, and B * L at the end: (S + 1) int64. Each row
// starts a segment.
torch::Tensor segment_offsets(const torch::Tensor& starts);  // (B, L) bool

// What windows are cut.
struct WindowOptions {
  int64_t batch = 1;             // rows
  int64_t length = 1;            // tokens of a window
  bool document_starts = false;  // fill Batch::starts
};

// What all samplers share.
class Sampler {
 public:
  virtual ~Sampler() = default;
  // The next batch, or nothing after the last; training samplers have no last.
  std::optional<Batch> next();
  const Position& position() const { return position_; }  // of the next batch
  // Goes to a position of a sampler of the same kind; one that cannot belong to this range is an error.
  void seek(const Position& position);

 protected:
  // Throws adder::Error where an option is below 1 or the range lies outside the stream.
  Sampler(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options);
  // An empty batch of `rows` windows of `length`.
  Batch make_batch(int64_t rows, int64_t length) const;
  // Reads the window that begins `begin` tokens into the range.
  void fill(Batch& batch, int64_t row, int64_t begin) const;
  const WindowOptions& options() const { return options_; }  // as they were given
  int64_t targets() const { return range_.size() - 1; }      // that the range holds

 private:
  // The batch at a position, with `after` unset, and the position moved behind it.
  virtual std::optional<Batch> take(Position& position) const = 0;
  // What Position::index stays below.
  virtual int64_t index_end() const = 0;

  std::shared_ptr<const TokenStream> stream_;
  Range range_;
  WindowOptions options_;
  Position position_;
};

// Windows that begin anywhere: the one in row i of step s depends on (seed, s, i) alone, and each of the n - length
// beginnings is equally likely.
class RandomWindows : public Sampler {
 public:
  // The range must hold more than options.length tokens.
  RandomWindows(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options, uint64_t seed);

 private:
  std::optional<Batch> take(Position& position) const override;
  int64_t index_end() const override { return 1; }
  uint64_t seed_;
};

// The windows [i * length, (i + 1) * length), each once an epoch, in an order that depends on (seed, epoch). A batch
// may hold the end of one epoch and the beginning of the next; targets that fill no window (fewer than `length`) are
// left out.
class ShuffledWindows : public Sampler {
 public:
  // The range must hold a window at least.
  ShuffledWindows(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options, uint64_t seed);
  int64_t windows() const { return targets() / options().length; }  // of an epoch

 private:
  std::optional<Batch> take(Position& position) const override;
  int64_t index_end() const override { return windows(); }
  uint64_t seed_;
};

// Truncated backpropagation through time: row b walks through the b-th of `batch` equal lanes, window after window. At
// the end of the lanes (fewer than `length` targets of each are left out) all rows begin again together, with `fresh`
// set.
class SequentialLanes : public Sampler {
 public:
  // Each lane must hold a window at least.
  SequentialLanes(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options);
  int64_t steps() const { return lane() / options().length; }  // of a pass

 private:
  std::optional<Batch> take(Position& position) const override;
  int64_t index_end() const override { return steps(); }
  int64_t lane() const { return targets() / options().batch; }
};

// The whole range once, in order: window i has the inputs [i * length, (i + 1) * length), the last one is short, and
// each of the n - 1 targets comes exactly once. Batches are full rectangles: the short window, and before it the rest
// of the full ones, come in smaller batches.
class EvaluationWindows : public Sampler {
 public:
  // The range must hold a target at least.
  EvaluationWindows(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options);

 protected:
  std::optional<Batch> take(Position& position) const override;
  int64_t index_end() const override { return (targets() + options().length - 1) / options().length + 1; }
};

// The same windows one at a time (`batch` must be 1), each going on where the one before ended: only the first is
// fresh.
class OrderedEvaluation : public EvaluationWindows {
 public:
  // As EvaluationWindows.
  OrderedEvaluation(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options);

 private:
  std::optional<Batch> take(Position& position) const override;
};

}  // namespace adder::data
