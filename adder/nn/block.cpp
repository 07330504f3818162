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
                                     const MambaState& state, const SequenceInfo& sequence) {
  auto [normed, sum] = norm_->forward(x, residual, type);
  auto [y, after] = mixer_->forward(normed, state, sequence);
  if (dropout_ > 0 && is_training()) y = torch::dropout(y, dropout_, true);
  return {y, sum, after};
}

}  // namespace adder::nn
