#include "adder/data/sampler.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/random.h"

namespace adder::data {

void to_json(nlohmann::json& json, const Position& position) {
  json = {{"epoch", position.epoch}, {"index", position.index}, {"step", position.step}};
}

void from_json(const nlohmann::json& json, Position& position) {
  const auto read = [&](const char* key) {
    ADDER_CHECK(json.is_object() && json.contains(key), "data position: must have the key '{}', got {}", key,
                json.dump());
    const auto& value = json.at(key);
    ADDER_CHECK(value.is_number_integer() && value.get<int64_t>() >= 0,
                "data position: '{}' must be a whole number from 0 on, got {}", key, value.dump());
    return value.get<int64_t>();
  };
  position = {read("epoch"), read("index"), read("step")};
}

torch::Tensor segment_offsets(const torch::Tensor& starts) {
  ADDER_CHECK(starts.dim() == 2 && starts.scalar_type() == torch::kBool && starts.is_cpu(),
              "segment_offsets: starts must be a (B, L) bool tensor on the CPU, got {} dimensions of {}", starts.dim(),
              c10::toString(starts.scalar_type()));
  const int64_t length = starts.size(1);
  const torch::Tensor flat = starts.contiguous();
  const bool* marks = flat.data_ptr<bool>();
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i < flat.numel(); ++i)
    if (marks[i] || i % length == 0) offsets.push_back(i);
  offsets.push_back(flat.numel());
  return torch::tensor(offsets, torch::kInt64);
}

Sampler::Sampler(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options)
    : stream_(std::move(stream)), range_(range), options_(options) {
  ADDER_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= stream_->size(),
              "sampler: range [{}, {}) must lie inside the stream of {} tokens", range.begin, range.end,
              stream_->size());
  ADDER_CHECK(options.batch >= 1, "sampler: batch must be at least 1, got {}", options.batch);
  ADDER_CHECK(options.length >= 1, "sampler: length must be at least 1, got {}", options.length);
}

std::optional<Batch> Sampler::next() {
  Position after = position_;
  std::optional<Batch> batch = take(after);
  if (!batch) return batch;
  ++after.step;
  batch->after = after;
  position_ = after;
  return batch;
}

void Sampler::seek(const Position& position) {
  ADDER_CHECK(position.epoch >= 0 && position.step >= 0 && position.index >= 0 && position.index < index_end(),
              "sampler: position (epoch {}, index {}, step {}) is not of this range: index must be below {}",
              position.epoch, position.index, position.step, index_end());
  position_ = position;
}

Batch Sampler::make_batch(int64_t rows, int64_t length) const {
  Batch batch;
  batch.input = torch::empty({rows, length}, torch::kInt64);
  batch.target = torch::empty({rows, length}, torch::kInt64);
  if (options_.document_starts) batch.starts = torch::zeros({rows, length}, torch::kBool);
  return batch;
}

void Sampler::fill(Batch& batch, int64_t row, int64_t begin) const {
  const int64_t length = batch.input.size(1);
  const int64_t first = range_.begin + begin;
  stream_->copy(first, length, batch.input.data_ptr<int64_t>() + row * length);
  stream_->copy(first + 1, length, batch.target.data_ptr<int64_t>() + row * length);
  if (!options_.document_starts) return;
  bool* marks = batch.starts.data_ptr<bool>() + row * length;
  const auto documents = stream_->documents();
  for (auto it = std::ranges::lower_bound(documents, first); it != documents.end() && *it < first + length; ++it)
    marks[*it - first] = true;
}

RandomWindows::RandomWindows(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options,
                             uint64_t seed)
    : Sampler(std::move(stream), range, options), seed_(core::derive_seed(seed, "data.random_windows")) {
  ADDER_CHECK(targets() >= options.length, "sampler: windows of {} need a range of at least {} tokens, got {}",
              options.length, options.length + 1, range.size());
}

std::optional<Batch> RandomWindows::take(Position& position) const {
  const auto [rows, length, starts] = options();
  const auto beginnings = static_cast<uint64_t>(targets() - length + 1);
  Batch batch = make_batch(rows, length);
  for (int64_t row = 0; row < rows; ++row)
    fill(batch, row, static_cast<int64_t>(core::random_below(beginnings, seed_, position.step, row)));
  return batch;
}

ShuffledWindows::ShuffledWindows(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options,
                                 uint64_t seed)
    : Sampler(std::move(stream), range, options), seed_(core::derive_seed(seed, "data.shuffled_windows")) {
  ADDER_CHECK(windows() >= 1, "sampler: windows of {} need a range of at least {} tokens, got {}", options.length,
              options.length + 1, range.size());
}

std::optional<Batch> ShuffledWindows::take(Position& position) const {
  const auto [rows, length, starts] = options();
  Batch batch = make_batch(rows, length);
  for (int64_t row = 0; row < rows; ++row) {
    const core::Permutation order(windows(), seed_, position.epoch);
    fill(batch, row, static_cast<int64_t>(order(position.index)) * length);
    if (++position.index == windows()) position = {position.epoch + 1, 0, position.step};
  }
  return batch;
}

SequentialLanes::SequentialLanes(std::shared_ptr<const TokenStream> stream, Range range, const WindowOptions& options)
    : Sampler(std::move(stream), range, options) {
  ADDER_CHECK(steps() >= 1, "sampler: {} lanes of windows of {} need a range of at least {} x {} + 1 tokens, got {}",
              options.batch, options.length, options.batch, options.length, range.size());
}

std::optional<Batch> SequentialLanes::take(Position& position) const {
  const auto [rows, length, starts] = options();
  Batch batch = make_batch(rows, length);
  for (int64_t row = 0; row < rows; ++row) fill(batch, row, row * lane() + position.index * length);
  batch.fresh = position.index == 0;
  if (++position.index == steps()) position = {position.epoch + 1, 0, position.step};
  return batch;
}

EvaluationWindows::EvaluationWindows(std::shared_ptr<const TokenStream> stream, Range range,
                                     const WindowOptions& options)
    : Sampler(std::move(stream), range, options) {
  ADDER_CHECK(targets() >= 1, "sampler: evaluation needs a range of at least 2 tokens, got {}", range.size());
}

std::optional<Batch> EvaluationWindows::take(Position& position) const {
  const auto [rows, length, starts] = options();
  const int64_t left = targets() - std::min(targets(), position.index * length);
  if (left == 0) return std::nullopt;
  const int64_t full = std::min(left / length, rows);
  Batch batch = full > 0 ? make_batch(full, length) : make_batch(1, left);
  for (int64_t row = 0; row < batch.input.size(0); ++row) fill(batch, row, (position.index + row) * length);
  position.index += batch.input.size(0);
  return batch;
}

OrderedEvaluation::OrderedEvaluation(std::shared_ptr<const TokenStream> stream, Range range,
                                     const WindowOptions& options)
    : EvaluationWindows(std::move(stream), range, options) {
  ADDER_CHECK(options.batch == 1, "sampler: ordered evaluation goes window by window, batch must be 1, got {}",
              options.batch);
}

std::optional<Batch> OrderedEvaluation::take(Position& position) const {
  const bool fresh = position.index == 0;
  auto batch = EvaluationWindows::take(position);
  if (batch) batch->fresh = fresh;
  return batch;
}

}  // namespace adder::data
