#include "adder/nn/parameters.h"

#include <torch/torch.h>

#include "adder/ops/small_linear.h"

namespace adder::nn {

torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in) {
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  return torch::empty(sizes).uniform_(-bound, bound);
}

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  const std::optional<torch::Tensor> b = bias.defined() ? std::optional(bias.to(x.scalar_type())) : std::nullopt;
  return ops::linear(x, weight.to(x.scalar_type()), b);
}

}  // namespace adder::nn
