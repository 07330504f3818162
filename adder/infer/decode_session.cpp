#include "adder/infer/decode_session.h"

#include <torch/torch.h>

#include <algorithm>

#include "adder/core/check.h"
#include "adder/device/device.h"
#include "adder/infer/evaluation_mode.h"
#include "adder/infer/recorded_step.h"

namespace adder::infer {
namespace {

using models::LMState;

void check_token(int64_t token, size_t row, size_t position, int64_t vocab) {
  ADDER_CHECK(token >= 0 && token < vocab, "token {} at position {} of row {} is outside the vocabulary [0, {})", token,
              position, row, vocab);
}

// Some steps of some adjoining rows, as one packed pass.
struct Piece {
  int64_t first_row = 0;
  std::vector<int64_t> ids;
  std::vector<int64_t> offsets = {0};  // (rows + 1)
  std::vector<int64_t> ended_rows;     // whose last token is in this piece
  std::vector<int64_t> ends;           // where in `ids`

  int64_t rows() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Cuts the prompts, one after another, into pieces. A prompt is cut only where it alone is longer than a piece, so that
// its cuts, and with them the bits of its results, do not depend on the others.
class Cutter {
 public:
  Cutter(const std::vector<std::vector<int64_t>>& prompts, int64_t size) : prompts_(prompts), size_(size) {}

  bool done() const { return row_ == prompts_.size(); }

  Piece next() {
    Piece piece;
    piece.first_row = static_cast<int64_t>(row_);
    const auto size = [&piece] { return static_cast<int64_t>(piece.ids.size()); };
    while (!done()) {
      const std::vector<int64_t>& prompt = prompts_[row_];
      const int64_t left = static_cast<int64_t>(prompt.size()) - position_;
      const int64_t count = std::min(left, size_);
      if (size() > 0 && size() + count > size_) break;
      const auto begin = prompt.begin() + position_;
      piece.ids.insert(piece.ids.end(), begin, begin + count);
      piece.offsets.push_back(size());
      position_ += count;
      if (count < left) break;
      if (count > 0) {
        piece.ended_rows.push_back(static_cast<int64_t>(row_));
        piece.ends.push_back(size() - 1);
      }
      ++row_;
      position_ = 0;
    }
    return piece;
  }

 private:
  const std::vector<std::vector<int64_t>>& prompts_;
  int64_t size_;
  size_t row_ = 0;
  int64_t position_ = 0;
};

LMState narrow(const LMState& state, int64_t first, int64_t count) {
  LMState part;
  for (const nn::MambaState& layer : state.layers)
    part.layers.push_back({layer.conv.narrow(0, first, count), layer.ssm.narrow(0, first, count)});
  return part;
}

torch::Tensor zeros_of_rows(const torch::Tensor& like, int64_t rows) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape[0] = rows;
  return torch::zeros(shape, like.options());
}

// All at once: one by one they would be hundreds of kernels of a few microseconds.
void copy(const LMState& to, const LMState& from) {
  std::vector<torch::Tensor> targets, sources;
  for (size_t i = 0; i < to.layers.size(); ++i) {
    targets.insert(targets.end(), {to.layers[i].conv, to.layers[i].ssm});
    sources.insert(sources.end(), {from.layers[i].conv, from.layers[i].ssm});
  }
  if (!targets.empty()) at::_foreach_copy_(targets, sources);
}

// A copy that can be written to: other holders of `state` keep theirs.
LMState writable(const LMState& state, const LMState& like, int64_t rows) {
  if (!state.layers.empty()) return state.clone();
  LMState zeros;
  for (const nn::MambaState& layer : like.layers)
    zeros.layers.push_back({zeros_of_rows(layer.conv, rows), zeros_of_rows(layer.ssm, rows)});
  return zeros;
}

}  // namespace

DecodeState DecodeState::select(const std::vector<int64_t>& rows) const {
  for (const int64_t row : rows)
    ADDER_CHECK(row >= 0 && row < this->rows(), "select: row {} is not one of the {} rows", row, this->rows());
  if (rows.empty()) return {};
  const c10::InferenceMode inference;
  const torch::Tensor index = torch::tensor(rows, torch::kLong).to(logits.device());
  return {lm.select(index), logits.index_select(0, index)};
}

DecodeSession::DecodeSession(models::MambaLM model, int64_t piece_tokens)
    : model_(std::move(model)), device_(model_->parameters().front().device()) {
  ADDER_CHECK(piece_tokens >= 0, "piece_tokens must be at least 1, or 0 for a number that suits the device, got {}",
              piece_tokens);
  piece_tokens_ = piece_tokens > 0 ? piece_tokens : device_.is_cuda() ? 16384 : 4096;
}

DecodeSession::~DecodeSession() = default;
DecodeSession::DecodeSession(DecodeSession&&) noexcept = default;
DecodeSession& DecodeSession::operator=(DecodeSession&&) noexcept = default;

const torch::Tensor& DecodeSession::prefill(const std::vector<std::vector<int64_t>>& prompts) {
  fetch_state();
  const auto count = static_cast<int64_t>(prompts.size());
  const bool fresh = rows() == 0;
  ADDER_CHECK(fresh || count == rows(), "prefill: a session of {} rows needs as many prompts, got {}", rows(), count);
  for (size_t row = 0; row < prompts.size(); ++row) {
    ADDER_CHECK(!fresh || !prompts[row].empty(), "prefill: the prompt of row {} is empty, and no token precedes it",
                row);
    for (size_t i = 0; i < prompts[row].size(); ++i) check_token(prompts[row][i], row, i, vocab_size());
  }
  const c10::InferenceMode inference;
  const EvaluationMode evaluation(model_);
  DecodeState next = fresh ? DecodeState() : state_;
  next.logits = fresh ? torch::empty({count, vocab_size()}, torch::TensorOptions(device_)) : state_.logits.clone();
  bool ours = false;  // next.lm is shared with no one
  // Without waiting for what is queued, so that a GPU always has work.
  const auto on_device = [this](const std::vector<int64_t>& values) {
    return device::to_device(device::pinned(torch::tensor(values, torch::kLong), device_), device_);
  };
  for (Cutter cutter(prompts, piece_tokens_); !cutter.done();) {
    const Piece piece = cutter.next();
    if (piece.ids.empty()) continue;
    const torch::Tensor ids = on_device(piece.ids).unsqueeze(0);
    auto [hidden, after] =
        model_->hidden(ids, narrow(next.lm, piece.first_row, piece.rows()),
                       {.cu_seqlens = torch::tensor(piece.offsets, torch::kLong), .independent = true});
    if (piece.rows() == count) {
      next.lm = std::move(after);
      ours = true;
    } else {
      if (!ours) next.lm = writable(next.lm, after, count);
      ours = true;
      const LMState part = narrow(next.lm, piece.first_row, piece.rows());
      copy(part, after);
    }
    if (piece.ends.empty()) continue;
    const torch::Tensor last = hidden[0].index_select(0, on_device(piece.ends));
    next.logits.index_copy_(0, on_device(piece.ended_rows), model_->logits(last, true).to(torch::kFloat));
  }
  state_ = std::move(next);
  return state_.logits;
}

const torch::Tensor& DecodeSession::step(const std::vector<int64_t>& tokens) {
  const auto count = static_cast<int64_t>(tokens.size());
  const bool fresh = rows() == 0;
  ADDER_CHECK(fresh || count == rows(), "step: a session of {} rows needs as many tokens, got {}", rows(), count);
  if (count == 0) return prefill({});
  for (size_t row = 0; row < tokens.size(); ++row) check_token(tokens[row], row, 0, vocab_size());
  const c10::InferenceMode inference;
  const EvaluationMode evaluation(model_);
  const torch::Tensor ids = torch::tensor(tokens, torch::kLong).to(device_);
  if (device_.is_cuda()) {
    if (recorded_step_ == nullptr || recorded_step_->rows() != count)
      recorded_step_ = std::make_unique<RecordedStep>(model_, state_, count);
    else if (!ahead_)
      recorded_step_->set(state_);
    recorded_step_->tokens().copy_(ids);
    recorded_step_->run();
    state_ = {{}, recorded_step_->logits()};
    ahead_ = true;
    return state_.logits;
  }
  auto [hidden, after] = model_->hidden(ids.unsqueeze(1), fresh ? LMState() : state_.lm, {.independent = true});
  state_ = {std::move(after), model_->logits(hidden.select(1, 0), true).to(torch::kFloat).contiguous()};
  return state_.logits;
}

DecodeState DecodeSession::state() const {
  const c10::InferenceMode inference;
  return ahead_ ? recorded_step_->copy() : state_;
}

void DecodeSession::fetch_state() {
  state_ = state();
  ahead_ = false;
}

void DecodeSession::select(const std::vector<int64_t>& rows) {
  fetch_state();
  state_ = state_.select(rows);
}

void DecodeSession::set_state(DecodeState state) {
  const int64_t rows = state.rows();
  if (rows > 0) {
    ADDER_CHECK(state.logits.dim() == 2 && state.logits.size(1) == vocab_size(),
                "set_state: logits must have shape (S, V) with V = {}, got ({})", vocab_size(),
                fmt::join(state.logits.sizes().vec(), ", "));
    ADDER_CHECK(static_cast<int64_t>(state.lm.layers.size()) == model_->options().n_layer,
                "set_state: a state of {} layers does not fit a model of {}", state.lm.layers.size(),
                model_->options().n_layer);
    for (size_t i = 0; i < state.lm.layers.size(); ++i)
      for (const torch::Tensor& t : {state.lm.layers[i].conv, state.lm.layers[i].ssm})
        ADDER_CHECK(t.defined() && t.dim() > 0 && t.size(0) == rows,
                    "set_state: layer {} must have a state for each of the {} rows of the logits", i, rows);
  }
  state_ = std::move(state);
  ahead_ = false;
}

}  // namespace adder::infer
