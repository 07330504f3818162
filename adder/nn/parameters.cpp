#include "adder/nn/parameters.h"

#include <torch/torch.h>

#include "adder/ops/small_linear.h"

namespace adder::nn {

torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in) {
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  return torch::empty(sizes).uniform_(-bound, bound);
}

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     const std::optional<torch::Tensor>& cu_seqlens) {
  const std::optional<torch::Tensor> b = bias.defined() ? std::optional(bias.to(x.scalar_type())) : std::nullopt;
  const torch::Tensor w = weight.to(x.scalar_type());
  const bool step = x.dim() == 2 || (x.dim() == 3 && x.size(1) == 1), packed = cu_seqlens && cu_seqlens->size(0) > 2;
  if (torch::GradMode::is_enabled() || !x.is_cpu() || (!step && !packed)) return ops::linear(x, w, b);
  if (!packed) return ops::small_linear(x, w, b);
  const torch::Tensor offsets = cu_seqlens->contiguous();
  const auto* first = offsets.const_data_ptr<int64_t>();
  std::vector<torch::Tensor> parts;
  for (int64_t i = 0; i + 1 < offsets.size(0); ++i)
    parts.push_back(ops::linear(x.narrow(1, first[i], first[i + 1] - first[i]), w, b));
  return torch::cat(parts, 1);
}

}  // namespace adder::nn
