#include "adder/infer/device_step.h"

#include <torch/torch.h>

#include "adder/infer/decode_kernels.h"

namespace adder::infer {

DeviceStep::DeviceStep(models::MambaLM model, const DecodeState& state, int64_t rows,
                       const std::function<void(DeviceStep&)>& then)
    : model_(std::move(model)) {
  const torch::TensorOptions options(model_->device());
  tokens_ = torch::zeros({rows}, options.dtype(torch::kLong));
  logits_ = torch::empty({rows, model_->options().vocab_size}, options.dtype(torch::kFloat));
  // The shapes and types of the state are those that a step leaves behind.
  state_ = model_->hidden(tokens_.unsqueeze(1), {}, {.independent = true}).second;
  set(state);
  fused_ = fused_step(model_, tokens_, logits_, state_);
  graph_ = std::make_unique<device::Graph>(model_->device());
  graph_->record(
      [&] {
        if (!fused_) model_->logits(model_->hidden(tokens_.unsqueeze(1), state_, {.independent = true}).first, true);
      },
      [&] {
        fused_ ? fused_() : step_by_layers();
        if (then) then(*this);
      });
}

void DeviceStep::step_by_layers() {
  // Where no token could be chosen it is negative, which is told later.
  const torch::Tensor ids = tokens_.clamp_min(0).unsqueeze(1);
  const auto [hidden, after] = model_->hidden(ids, state_, {.independent = true});
  logits_.copy_(model_->logits(hidden.select(1, 0), true));
  for (size_t i = 0; i < after.layers.size(); ++i) {
    state_.layers[i].conv.copy_(after.layers[i].conv);
    state_.layers[i].ssm.copy_(after.layers[i].ssm);
  }
}

DecodeState DeviceStep::copy() const {
  DecodeState out;
  for (const nn::MambaState& layer : state_.layers) out.lm.layers.push_back({layer.conv.clone(), layer.ssm.clone()});
  out.logits = logits_.clone();
  return out;
}

void DeviceStep::set(const DecodeState& state) {
  for (size_t i = 0; i < state_.layers.size(); ++i) {
    nn::MambaState& own = state_.layers[i];
    if (state.lm.layers.empty()) {
      own.conv.zero_();
      own.ssm.zero_();
    } else {
      own.conv.copy_(state.lm.layers[i].conv);
      own.ssm.copy_(state.lm.layers[i].ssm);
    }
  }
  if (state.logits.defined()) logits_.copy_(state.logits);
}

}  // namespace adder::infer
