#pragma once

#include <functional>
#include <memory>

#include "adder/device/device.h"
#include "adder/infer/decode_kernels.h"
#include "adder/infer/decode_session.h"

namespace adder::infer {

// What a step does with its logits: choose() is recorded behind it; `greedy`, where given, says that this is the first
// of the largest, which the step's own kernel can do.
struct StepChoice {
  std::function<void(const StepTensors&)> choose;
  const CopiedTokens* greedy = nullptr;
};

// One token of each row through a model on a GPU, recorded as a CUDA graph: tokens, logits and state keep their places,
// and the host waits for nothing.
class RecordedStep {
 public:
  // Goes on from a copy of `state`; layers may be empty, as at the beginning.
  RecordedStep(models::MambaLM model, const DecodeState& state, int64_t rows, const StepChoice& choice = {});

  RecordedStep(const RecordedStep&) = delete;
  RecordedStep& operator=(const RecordedStep&) = delete;

  const torch::Tensor& tokens() const { return tensors_.tokens; }
  const torch::Tensor& logits() const { return tensors_.logits; }
  int64_t rows() const { return tokens().size(0); }
  void run() { graph_->replay(); }

  DecodeState copy() const;
  void set(const DecodeState& state);

 private:
  void step_by_layers();

  models::MambaLM model_;
  StepTensors tensors_;
  std::function<void()> step_;  // holds what the recorded kernels read
  std::unique_ptr<device::Graph> graph_;
};

}  // namespace adder::infer
