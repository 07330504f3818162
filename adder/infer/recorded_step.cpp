#include "adder/infer/recorded_step.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/infer/evaluation_mode.h"
#include "adder/nn/derived_tensor.h"

namespace adder::infer {

RecordedStep::RecordedStep(models::MambaLM model, const DecodeState& state, int64_t rows, const StepChoice& choice)
    : model_(std::move(model)) {
  const c10::InferenceMode inference;
  const EvaluationMode evaluation(model_);
  const nn::NoDerivedTensors fresh;
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

void RecordedStep::step_by_layers() {
  // Where no token could be chosen it is negative, which is told later.
  const torch::Tensor ids = tokens().clamp_min(0).unsqueeze(1);
  const auto [hidden, after] = model_->hidden(ids, tensors_.state, {.independent = true});
  logits().copy_(model_->logits(hidden.select(1, 0), true));
  for (size_t i = 0; i < after.layers.size(); ++i) {
    tensors_.state.layers[i].conv.copy_(after.layers[i].conv);
    tensors_.state.layers[i].ssm.copy_(after.layers[i].ssm);
  }
}

DecodeState RecordedStep::copy() const {
  return {tensors_.state.clone(), logits().clone()};
}

void RecordedStep::set(const DecodeState& state) {
  for (size_t i = 0; i < tensors_.state.layers.size(); ++i) {
    nn::MambaState& own = tensors_.state.layers[i];
    if (state.lm.layers.empty()) {
      own.conv.zero_();
      own.ssm.zero_();
    } else {
      for (const auto& [to, from] :
           {std::pair(own.conv, state.lm.layers[i].conv), std::pair(own.ssm, state.lm.layers[i].ssm)}) {
        ADDER_CHECK(from.sizes() == to.sizes() && from.scalar_type() == to.scalar_type(),
                    "set_state: layer {} needs a state of shape ({}) in {}, got ({}) in {}", i,
                    fmt::join(to.sizes().vec(), ", "), torch::toString(to.scalar_type()),
                    fmt::join(from.sizes().vec(), ", "), torch::toString(from.scalar_type()));
        to.copy_(from);
      }
    }
  }
  if (state.logits.defined()) logits().copy_(state.logits);
}

}  // namespace adder::infer
