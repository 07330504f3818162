#include "adder/infer/device_step.h"

#include <torch/torch.h>

namespace adder::infer {

DeviceStep::DeviceStep(models::MambaLM model, const DecodeState& state, int64_t rows, const StepChoice& choice)
    : model_(std::move(model)) {
  const torch::TensorOptions options(model_->device());
  tensors_.tokens = torch::zeros({rows}, options.dtype(torch::kLong));
  tensors_.logits = torch::empty({rows, model_->options().vocab_size}, options.dtype(torch::kFloat));
  // The shapes of the state are those that a step leaves behind.
  const models::LMState after = model_->hidden(tokens().unsqueeze(1), {}, {.independent = true}).second;
  for (const nn::MambaState& layer : after.layers)
    tensors_.state.layers.push_back({layer.conv.contiguous(), layer.ssm.contiguous()});
  bool chooses = choice.greedy != nullptr;
  step_ = one_kernel_step(model_, tensors_, choice.greedy);
  if (!step_) {
    chooses = false;
    step_ = many_rows_step(model_, tensors_);
  }
  if (!step_) step_ = [this] { step_by_layers(); };
  graph_ = std::make_unique<device::Graph>(model_->device());
  graph_->record(step_, [&] {
    step_();
    if (choice.choose && !chooses) choice.choose(tensors_);
  });
  set(state);
}

void DeviceStep::step_by_layers() {
  // Where no token could be chosen it is negative, which is told later.
  const torch::Tensor ids = tokens().clamp_min(0).unsqueeze(1);
  const auto [hidden, after] = model_->hidden(ids, tensors_.state, {.independent = true});
  logits().copy_(model_->logits(hidden.select(1, 0), true));
  for (size_t i = 0; i < after.layers.size(); ++i) {
    tensors_.state.layers[i].conv.copy_(after.layers[i].conv);
    tensors_.state.layers[i].ssm.copy_(after.layers[i].ssm);
  }
}

DecodeState DeviceStep::copy() const {
  DecodeState out;
  for (const nn::MambaState& layer : tensors_.state.layers)
    out.lm.layers.push_back({layer.conv.clone(), layer.ssm.clone()});
  out.logits = logits().clone();
  return out;
}

void DeviceStep::set(const DecodeState& state) {
  for (size_t i = 0; i < tensors_.state.layers.size(); ++i) {
    nn::MambaState& own = tensors_.state.layers[i];
    if (state.lm.layers.empty()) {
      own.conv.zero_();
      own.ssm.zero_();
    } else {
      own.conv.copy_(state.lm.layers[i].conv);
      own.ssm.copy_(state.lm.layers[i].ssm);
    }
  }
  if (state.logits.defined()) logits().copy_(state.logits);
}

}  // namespace adder::infer
