#pragma once

#include <functional>
#include <memory>

#include "adder/device/device.h"
#include "adder/infer/decode_session.h"

namespace adder::infer {

// One token of each row through a model on a GPU, recorded as a CUDA graph: tokens, logits and state keep their places,
// and the host waits for nothing.
class DeviceStep {
 public:
  // Goes on from a copy of `state`; layers may be empty, as at the beginning. `then`: more work for each step, which
  // may use tokens() and logits(), recorded with it.
  DeviceStep(models::MambaLM model, const DecodeState& state, int64_t rows,
             const std::function<void(DeviceStep&)>& then = {});

  const torch::Tensor& tokens() const { return tokens_; }  // (S) int64, in
  const torch::Tensor& logits() const { return logits_; }  // (S, V) float32, out
  int64_t rows() const { return tokens_.size(0); }
  void run() { graph_->replay(); }

  DecodeState copy() const;
  void set(const DecodeState& state);

 private:
  void step_by_layers();

  models::MambaLM model_;
  torch::Tensor tokens_, logits_;
  models::LMState state_;
  std::function<void()> fused_;  // holds what the recorded kernel reads
  std::unique_ptr<device::Graph> graph_;
};

}  // namespace adder::infer
