#include "adder/nn/parameters.h"

#include <torch/torch.h>

#include "adder/ops/small_linear.h"

namespace adder::nn {

torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in) {
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  return torch::empty(sizes).uniform_(-bound, bound);
}

namespace {

// A product of its own for each sequence, from rows that begin at a multiple of 64 bytes as those of a lone sequence
// do: BLAS may sum in another order for another number or alignment of rows.
torch::Tensor linear_of_each(const torch::Tensor& x, const torch::Tensor& weight,
                             const std::optional<torch::Tensor>& bias, const torch::Tensor& cu_seqlens) {
  const torch::Tensor offsets = cu_seqlens.contiguous();
  const auto* begins = offsets.const_data_ptr<int64_t>();
  std::vector<torch::Tensor> parts;
  for (int64_t i = 0; i + 1 < offsets.size(0); ++i) {
    torch::Tensor rows = x[0].narrow(0, begins[i], begins[i + 1] - begins[i]).contiguous();
    if (reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 64 != 0) rows = rows.clone();
    parts.push_back(ops::linear(rows, weight, bias));
  }
  return torch::cat(parts, 0).unsqueeze(0);
}

}  // namespace

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                     const SequenceInfo& sequence) {
  const std::optional<torch::Tensor> b = bias.defined() ? std::optional(bias.to(x.scalar_type())) : std::nullopt;
  const torch::Tensor w = weight.to(x.scalar_type());
  if (sequence.independent && !torch::GradMode::is_enabled() && x.is_cpu()) {
    if (sequence.cu_seqlens && x.size(1) > 0) return linear_of_each(x, w, b, *sequence.cu_seqlens);
    if (x.dim() == 2 || x.size(1) == 1) return ops::small_linear(x, w, b);
  }
  return ops::linear(x, w, b);
}

}  // namespace adder::nn
