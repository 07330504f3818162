#include "adder/nn/block.h"

#include <torch/torch.h>

#include "adder/ops/add_norm.h"

namespace adder::nn {

NormImpl::NormImpl(int64_t width, const std::string& kind, double eps) : kind_(kind), eps_(eps) {
  weight_ = register_parameter("weight", torch::ones({width}));
  if (kind == "layer") bias_ = register_parameter("bias", torch::zeros({width}));
}

std::pair<torch::Tensor, torch::Tensor> NormImpl::forward(const torch::Tensor& x, const torch::Tensor& residual,
                                                          torch::ScalarType type) {
  const auto optional = [](const torch::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
  auto [y, sum] =
      ops::add_norm(x, optional(residual), weight_, optional(bias_), {.kind = kind_, .eps = eps_, .out_dtype = type});
  return {y, sum};
}

BlockImpl::BlockImpl(int64_t d_model, const MambaOptions& mixer, int64_t n_layer, const std::string& norm,
                     double norm_eps, double dropout)
    : dropout_(dropout) {
  norm_ = register_module("norm", Norm(d_model, norm, norm_eps));
  mixer_ = register_module("mixer", Mamba(d_model, mixer, n_layer));
}

BlockImpl::Output BlockImpl::forward(const torch::Tensor& x, const torch::Tensor& residual, torch::ScalarType type,
                                     const MambaState& state, const SequenceInfo& sequence, Recompute recompute) {
  using torch::autograd::variable_list;
  Output out;
  if (recompute == Recompute::kNone) {
    const auto [normed, sum] = norm_->forward(x, residual, type);
    auto [y, after] = mixer_->forward(normed, state, sequence);
    out = {y, sum, after};
  } else {
    // The modules live as long as the graph that may run them again.
    auto mix = [mixer = mixer_, sequence](const variable_list& in) mutable -> variable_list {
      auto [y, after] = mixer->forward(in[0], {in[1], in[2]}, sequence);
      return {y, after.conv, after.ssm};
    };
    variable_list made;
    if (recompute == Recompute::kMixer) {
      const auto [normed, sum] = norm_->forward(x, residual, type);
      made = recomputed(mix, {normed, state.conv, state.ssm}, mixer_->parameters());
      made.push_back(sum);
    } else {
      const auto norm_and_mix = [norm = norm_, type, mix](const variable_list& in) mutable {
        const auto [normed, sum] = norm->forward(in[0], in[1], type);
        variable_list all = mix({normed, in[2], in[3]});
        all.push_back(sum);
        return all;
      };
      made = recomputed(norm_and_mix, {x, residual, state.conv, state.ssm}, parameters());
    }
    out = {made[0], made[3], {made[1], made[2]}};
  }
  if (dropout_ > 0 && is_training()) out.x = torch::dropout(out.x, dropout_, true);
  return out;
}

}  // namespace adder::nn
