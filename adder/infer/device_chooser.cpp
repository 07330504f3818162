#include <torch/torch.h>

#include <deque>
#include <numeric>

#include "adder/core/random.h"
#include "adder/infer/chooser.h"
#include "adder/infer/decode_kernels.h"
#include "adder/infer/recorded_step.h"
#include "adder/kernels/sample_tokens.h"

namespace adder::infer {
namespace {

using Tokens = std::vector<int64_t>;

// Steps that the device may be ahead of what the host has seen.
constexpr int64_t kAhead = 4;
// Steps for which another batch is recorded.
constexpr int64_t kWorthRecording = 16;

// The device goes from token to token by itself: each step is fed what the last one chose. Rows that are done stay in
// the batch until half of it is.
class DeviceChooser : public Chooser {
 public:
  DeviceChooser(DecodeSession& session, const std::vector<Tokens>& histories, const GenerateOptions& options)
      : model_(session.model()),
        options_(options),
        device_(model_->device()),
        seed_(core::derive_seed(static_cast<uint64_t>(options.sampling.seed), "infer.sample")),
        rows_(histories.size()) {
    const c10::InferenceMode inference;
    std::iota(rows_.begin(), rows_.end(), size_t{0});
    batch_ = slots_ = rows_;
    state_ = session.state();
    state_.logits = state_.logits.to(torch::kFloat).contiguous();
    session.set_state({});  // it would be kept beside the one that goes on
    if (options.sampling.repetition_penalty != 1) seen_ = seen_of(histories);
    tokens_ = torch::zeros({static_cast<int64_t>(rows_.size())}, torch::device(device_).dtype(torch::kLong));
    begin_batch();
  }

  Tokens choose(int64_t step) override {
    const c10::InferenceMode inference;
    while (queued_ <= step + kAhead && queued_ < options_.sampling.max_tokens && read_->pending() < read_->slots())
      queue();
    Tokens of_batch = take();
    Tokens chosen;
    for (size_t i = 0; i < slots_.size(); ++i) {
      const int64_t token = of_batch[slots_[i]];
      const auto row = static_cast<int64_t>(rows_[i]);
      if (token == kernels::kNotFinite) fail_at(row, step, "sample: logits must be finite or -inf, one is NaN or +inf");
      if (token == kernels::kNoneFinite)
        fail_at(row, step, "sample: no token can be chosen, none of the logits is finite");
      chosen.push_back(token);
    }
    return chosen;
  }

  void keep(const std::vector<size_t>& places) override {
    for (size_t i = 0; i < places.size(); ++i) {
      rows_[i] = rows_[places[i]];
      slots_[i] = slots_[places[i]];
    }
    rows_.resize(places.size());
    slots_.resize(places.size());
    const int64_t left = options_.sampling.max_tokens - queued_;
    if (!slots_.empty() && 2 * slots_.size() <= batch_.size() && left >= kWorthRecording) shrink();
  }

 private:
  // Pinned memory for the places of as many steps as may be under way.
  struct PlaceSlots {
    explicit PlaceSlots(const torch::Tensor& like) {
      for (int64_t i = 0; i < kAhead + 2; ++i)
        slots.push_back(torch::zeros(like.sizes(), torch::TensorOptions(torch::kDouble).pinned_memory(true)));
    }
    torch::Tensor& next() { return slots[static_cast<size_t>(turn++) % slots.size()]; }
    std::vector<torch::Tensor> slots;
    int64_t turn = 0;
  };

  torch::Tensor seen_of(const std::vector<Tokens>& histories) const {
    const int64_t vocab = model_->options().vocab_size;
    torch::Tensor seen = torch::zeros({static_cast<int64_t>(histories.size()), vocab}, torch::kByte);
    auto* const values = seen.mutable_data_ptr<uint8_t>();
    for (size_t row = 0; row < histories.size(); ++row)
      for (const int64_t token : histories[row]) values[static_cast<int64_t>(row) * vocab + token] = 1;
    return seen.to(device_);
  }

  // What goes with tokens_, for a batch of its size.
  void begin_batch() {
    places_ = torch::zeros(tokens_.sizes(), tokens_.options().dtype(torch::kDouble));
    host_places_ = std::make_unique<PlaceSlots>(places_);
    read_ = std::make_unique<device::Readback>(tokens_, kAhead + 1);
    copied_ = {read_->memory(), torch::zeros_like(tokens_)};
  }

  void sample(const torch::Tensor& logits, const torch::Tensor& tokens) {
    sample_on_device(logits, places_, seen_, options_.sampling, tokens, copied_);
  }

  void queue() {
    torch::Tensor& places = host_places_->next();
    if (options_.sampling.temperature > 0) {
      auto* values = places.mutable_data_ptr<double>();
      for (size_t i = 0; i < batch_.size(); ++i)
        values[i] = core::random_unit(seed_, static_cast<uint64_t>(row_number(options_, batch_[i])),
                                      static_cast<uint64_t>(queued_));
      places_.copy_(places, /*non_blocking=*/true);
    }
    if (queued_ == 0) {
      sample(state_.logits, tokens_);
    } else {
      if (step_ == nullptr) begin_steps();
      step_->run();
    }
    read_->pushed();
    ++queued_;
  }

  void begin_steps() {
    // Choosing goes on from where it is: recording runs steps, but the host has not asked for their tokens.
    const torch::Tensor turns = copied_.turns.clone();
    const StepChoice choice{[this](const StepTensors& t) { sample(t.logits, t.tokens); },
                            options_.sampling.temperature == 0 && !seen_.defined() ? &copied_ : nullptr};
    step_ = std::make_unique<RecordedStep>(model_, state_, static_cast<int64_t>(batch_.size()), choice);
    copied_.turns.copy_(turns);
    step_->tokens().copy_(tokens_);
    tokens_ = step_->tokens();
    state_ = {};
  }

  Tokens take() {
    if (!taken_.empty()) {
      Tokens oldest = std::move(taken_.front());
      taken_.pop_front();
      return oldest;
    }
    const torch::Tensor tokens = read_->pop();
    const int64_t* values = tokens.const_data_ptr<int64_t>();
    return {values, values + tokens.numel()};
  }

  // A batch of the rows that go on, from where the device is.
  void shrink() {
    const c10::InferenceMode inference;
    while (read_->pending() > 0) {
      const torch::Tensor tokens = read_->pop();
      taken_.push_back({tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + tokens.numel()});
    }
    for (Tokens& tokens : taken_) {
      Tokens left;
      for (const size_t slot : slots_) left.push_back(tokens[slot]);
      tokens = std::move(left);
    }
    const std::vector<int64_t> kept(slots_.begin(), slots_.end());
    const torch::Tensor index = torch::tensor(kept, torch::kLong).to(device_);
    if (step_ != nullptr) state_ = step_->copy();
    step_ = nullptr;
    state_ = state_.select(kept);
    tokens_ = tokens_.index_select(0, index);
    if (seen_.defined()) seen_ = seen_.index_select(0, index);
    begin_batch();
    batch_ = rows_;
    std::iota(slots_.begin(), slots_.end(), size_t{0});
  }

  models::MambaLM model_;
  const GenerateOptions& options_;
  torch::Device device_;
  uint64_t seed_;
  DecodeState state_;                 // before the first step of step_
  std::vector<size_t> rows_, slots_;  // that go on: their numbers in the call, and their places in the batch
  std::vector<size_t> batch_;         // the numbers of the batch's rows
  torch::Tensor tokens_, places_, seen_;
  CopiedTokens copied_;
  std::unique_ptr<PlaceSlots> host_places_;
  std::unique_ptr<device::Readback> read_;
  std::unique_ptr<RecordedStep> step_;
  std::deque<Tokens> taken_;  // read, not yet asked for
  int64_t queued_ = 0;
};

}  // namespace

std::unique_ptr<Chooser> make_device_chooser(DecodeSession& session, std::vector<Tokens> histories,
                                             const GenerateOptions& options) {
  return std::make_unique<DeviceChooser>(session, histories, options);
}

}  // namespace adder::infer
