#include "adder/train/nonfinite.h"

#include <torch/torch.h>

namespace adder::train {

std::string first_nonfinite(models::MambaLMImpl& model, const tasks::TaskBatch& batch, const models::LMState& state) {
  std::string found;
  model.set_probe([&](const std::string& name, const torch::Tensor& output) {
    if (found.empty() && !torch::isfinite(output).all().item<bool>()) found = "the output of " + name;
  });
  torch::Tensor loss;
  {
    const torch::NoGradGuard no_grad;
    loss = tasks::batch_loss(model, batch, state).mean;
  }
  model.set_probe({});
  if (!found.empty()) return found;
  if (!std::isfinite(loss.item<double>())) return "the loss";
  // named_parameters() is in the order of the forward pass.
  for (const auto& parameter : model.named_parameters())
    if (parameter.value().grad().defined() && !torch::isfinite(parameter.value().grad()).all().item<bool>())
      found = "the gradient of " + parameter.key();
  return found.empty() ? "nothing when the batch is run again" : found;
}

}  // namespace adder::train
