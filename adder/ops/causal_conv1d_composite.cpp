#include <ATen/ATen.h>

#include "adder/ops/causal_conv1d.h"
#include "adder/ops/causal_conv1d_schema.h"
#include "adder/ops/checks.h"

namespace adder::ops {

std::tuple<at::Tensor, at::Tensor> causal_conv1d_composite(const at::Tensor& x, const at::Tensor& weight,
                                                           const std::optional<at::Tensor>& bias,
                                                           const CausalConv1dOptions& o) {
  const bool packed = present(o.cu_seqlens);
  const bool silu = conv_activation_of(o.activation) == kernels::ConvActivation::kSilu;
  const int64_t length = x.size(1), channels = x.size(2), width = weight.size(1);
  const int64_t sequences = packed ? o.cu_seqlens->size(0) - 1 : x.size(0);

  at::Tensor y = at::zeros(x.sizes(), x.options());
  std::vector<at::Tensor> windows;
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t b = packed ? 0 : s;
    const int64_t first = packed ? (*o.cu_seqlens)[s].item<int64_t>() : 0;
    const int64_t last = packed ? (*o.cu_seqlens)[s + 1].item<int64_t>() : length;
    at::Tensor steps = at::arange(first, last, x.options().dtype(at::kLong));
    if (present(o.mask)) steps = steps.masked_select((*o.mask)[b].slice(0, first, last));
    if (o.reverse) steps = steps.flip(0);
    const int64_t n = steps.size(0);
    const at::Tensor before =
        present(o.initial_window) ? (*o.initial_window)[s] : at::zeros({width - 1, channels}, weight.options());
    const at::Tensor rows = at::cat({before, x[b].index_select(0, steps).to(weight.scalar_type())});
    at::Tensor sum = present(bias) ? bias->expand({n, channels}) : at::zeros({n, channels}, weight.options());
    for (int64_t k = 0; k < width; ++k) sum = sum + weight.select(1, k) * rows.slice(0, k, k + n);
    if (silu) sum = at::silu(sum);
    y = y.index_put({at::full({n}, b, steps.options()), steps}, sum.to(x.scalar_type()));
    windows.push_back(rows.slice(0, n, n + width - 1));
  }
  return {y, windows.empty() ? at::zeros({0, width - 1, channels}, weight.options()) : at::stack(windows)};
}

}  // namespace adder::ops
