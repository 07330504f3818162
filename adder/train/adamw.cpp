#include "adder/train/adamw.h"

#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_fused_adamw.h>
#include <torch/torch.h>

#include <limits>
#include <map>

#include "adder/core/check.h"
#include "adder/ops/sum_of_squares.h"

namespace adder::train {

bool is_decayed(const std::string& name) {
  for (const char* end : {"A_log", "A_imag", "bias", "norm.weight", "norm_f.weight", "embedding.weight"})
    if (name.ends_with(end)) return false;
  const std::string last = name.substr(name.rfind('.') + 1);  // of a whole name too, as a block alone has them
  return last != "D" && last != "B" && last != "C";
}

AdamW::AdamW(const torch::nn::Module& model, const OptimizerOptions& options) : options_(options) {
  groups_[0].weight_decay = options.weight_decay;
  groups_[1].weight_decay = 0;
  for (const auto& parameter : model.named_parameters()) {
    Group& group = groups_[is_decayed(parameter.key()) ? 0 : 1];
    group.names.push_back(parameter.key());
    group.parameters.push_back(parameter.value());
    group.first.push_back(torch::zeros_like(parameter.value()));
    group.second.push_back(torch::zeros_like(parameter.value()));
    group.steps.push_back(torch::zeros({}, parameter.value().options().dtype(torch::kFloat).requires_grad(false)));
  }
}

void AdamW::zero_grad() {
  for (Group& group : groups_)
    for (torch::Tensor& parameter : group.parameters) parameter.mutable_grad() = torch::Tensor();
}

double AdamW::gradient_norm() const {
  return std::sqrt(squared_norm().item<double>());
}

torch::Tensor AdamW::squared_norm() const {
  std::vector<torch::Tensor> grads;
  for (const Group& group : groups_)
    for (const torch::Tensor& parameter : group.parameters) {
      if (!parameter.grad().defined()) continue;
      const torch::ScalarType type = parameter.grad().scalar_type();
      grads.push_back(parameter.grad().to(type == torch::kDouble ? type : torch::kFloat));
    }
  return ops::sum_of_squares(grads);
}

AdamW::Update::Update(const Group& group) {
  for (size_t i = 0; i < group.parameters.size(); ++i) {
    if (!group.parameters[i].grad().defined()) continue;
    parameters.push_back(group.parameters[i]);
    grads.push_back(group.parameters[i].grad());
    first.push_back(group.first[i]);
    second.push_back(group.second[i]);
    steps.push_back(group.steps[i]);
  }
}

void AdamW::step(double lr, double norm) {
  const torch::NoGradGuard no_grad;
  std::optional<torch::Tensor> scale;  // the kernel divides gradients by it
  if (options_.clip > 0 && norm > options_.clip) {
    // A float32 that is not infinite, however large the norm.
    const double factor = std::min<double>(norm / options_.clip, std::numeric_limits<float>::max());
    scale = torch::full({}, factor, groups_[0].parameters.empty() ? torch::kFloat : groups_[0].steps[0].options());
  }
  for (const Group& group : groups_) {
    Update u(group);
    if (u.parameters.empty()) continue;
    for (torch::Tensor& steps : u.steps) steps += 1;
    at::_fused_adamw_(u.parameters, u.grads, u.first, u.second, {}, u.steps, lr, options_.beta1, options_.beta2,
                      group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false, scale,
                      /*found_inf=*/std::nullopt);
  }
  mark_changed();
}

void AdamW::step_on_device(const torch::Tensor& lr, const torch::Tensor& norm, const torch::Tensor& stopped) {
  const torch::NoGradGuard no_grad;
  std::optional<torch::Tensor> scale;
  if (options_.clip > 0) scale = (norm / options_.clip).clamp(1.0, std::numeric_limits<float>::max()).to(torch::kFloat);
  const torch::Tensor one = 1 - stopped;
  for (const Group& group : groups_) {
    Update u(group);
    if (u.parameters.empty()) continue;
    at::_foreach_add_(u.steps, one);
    at::_fused_adamw_(u.parameters, u.grads, u.first, u.second, {}, u.steps, lr, options_.beta1, options_.beta2,
                      group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false, scale, stopped);
  }
}

// The fused kernel does not tell that it wrote, and neither does a graph; what is derived from a parameter goes by its
// version.
void AdamW::mark_changed() {
  for (const Group& group : groups_)
    for (const torch::Tensor& parameter : group.parameters)
      if (parameter.grad().defined()) torch::autograd::impl::bump_version(parameter);
}

std::vector<std::pair<std::string, torch::Tensor>> AdamW::named_state() const {
  std::vector<std::pair<std::string, torch::Tensor>> state;
  for (const Group& group : groups_)
    for (size_t i = 0; i < group.names.size(); ++i) {
      state.emplace_back("adamw.first." + group.names[i], group.first[i]);
      state.emplace_back("adamw.second." + group.names[i], group.second[i]);
      state.emplace_back("adamw.step." + group.names[i], group.steps[i]);
    }
  return state;
}

void AdamW::load_state(const std::vector<std::pair<std::string, torch::Tensor>>& state) {
  const torch::NoGradGuard no_grad;
  const std::map<std::string, torch::Tensor> saved(state.begin(), state.end());
  for (auto& [name, tensor] : named_state()) {
    const auto found = saved.find(name);
    ADDER_CHECK(found != saved.end(), "checkpoint: the optimizer's tensor '{}' is missing", name);
    ADDER_CHECK(found->second.sizes() == tensor.sizes(),
                "checkpoint: the optimizer's tensor '{}' must have shape ({}), got ({})", name,
                fmt::join(tensor.sizes().vec(), ", "), fmt::join(found->second.sizes().vec(), ", "));
    tensor.copy_(found->second);
  }
}

}  // namespace adder::train
