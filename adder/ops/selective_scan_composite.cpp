#include <ATen/ATen.h>

#include "adder/ops/checks.h"
#include "adder/ops/selective_scan.h"
#include "adder/ops/selective_scan_schema.h"

namespace adder::ops {
namespace {

// (exp(x) - 1) / x, by its series near 0; both branches stay finite, so that where() passes clean gradients.
at::Tensor zoh_factor(const at::Tensor& x) {
  const at::Tensor small = x.abs() < 0.25;
  const at::Tensor near = at::where(small, x, at::zeros_like(x)), far = at::where(small, at::ones_like(x), x);
  at::Tensor series = at::zeros_like(x);
  double factorial = 1;
  for (int k = 2; k <= 15; ++k) factorial *= k;
  for (int k = 14; k >= 0; --k) {
    series = series * near + 1.0 / factorial;
    factorial /= k + 1;
  }
  return at::where(small, series, (far.exp() - 1) / far);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> selective_scan_composite(const at::Tensor& u_in, const at::Tensor& delta_in,
                                                            const at::Tensor& A, const at::Tensor& B,
                                                            const at::Tensor& C, const SelectiveScanOptions& o) {
  const int64_t channels = u_in.size(2), state = A.size(1), length = u_in.size(1);
  const int64_t sequences = present(o.cu_seqlens) ? o.cu_seqlens->size(0) - 1 : u_in.size(0);
  const bool complex = A.is_complex(), zoh = discretization_of(o.discretization) == kernels::Discretization::kZoh;
  const at::ScalarType real = accumulator_type(u_in.scalar_type());
  at::Tensor u = u_in.to(real), delta = delta_in.to(real);
  if (present(o.delta_bias)) delta = delta + *o.delta_bias;
  // Beyond torch's usual threshold of 20 the identity is still off by 2e-9.
  if (o.delta_softplus) delta = at::softplus(delta, 1, 40);
  const at::Tensor valid = present(o.mask) ? o.mask->unsqueeze(2) : at::Tensor();
  if (valid.defined()) {
    u = at::where(valid, u, at::zeros_like(u));
    delta = at::where(valid, delta, at::zeros_like(delta));
  }
  // Per-step B or C as (B, L, D, N).
  const auto per_step = [&](const at::Tensor& x) {
    at::Tensor wide = x.to(real);
    if (valid.defined()) wide = at::where(valid.unsqueeze(3), wide, at::zeros_like(wide));
    if (complex) wide = at::view_as_complex(wide.reshape({wide.size(0), wide.size(1), wide.size(2), state, 2}));
    return wide.repeat_interleave(channels / x.size(2), 2);
  };
  // All rows at once, or the segments of the only row one after another. unbind, since the gradient of a selection for
  // each step would be as long as the sequence.
  const bool packed = present(o.cu_seqlens);
  const auto steps = [](const at::Tensor& x, int64_t first, int64_t last) { return x.slice(1, first, last).unbind(1); };
  std::vector<at::Tensor> ys, finals;
  for (int64_t s = 0; s < (packed ? sequences : 1); ++s) {
    const int64_t first = packed ? (*o.cu_seqlens)[s].item<int64_t>() : 0;
    const int64_t last = packed ? (*o.cu_seqlens)[s + 1].item<int64_t>() : length;
    const int64_t rows = packed ? 1 : sequences, count = last - first;
    at::Tensor h = present(o.initial_state) ? o.initial_state->slice(0, s, s + rows)
                                            : at::zeros({rows, channels, state}, A.options());
    const auto us = steps(u, first, last), deltas = steps(delta, first, last);
    const auto Bs = B.dim() == 2 ? std::vector<at::Tensor>(count, B) : steps(per_step(B), first, last);
    const auto Cs = C.dim() == 2 ? std::vector<at::Tensor>(count, C) : steps(per_step(C), first, last);
    std::vector<at::Tensor> segment(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t t = o.reverse ? count - 1 - i : i;
      const at::Tensor x = deltas[t].unsqueeze(2) * A;  // (rows, D, N)
      at::Tensor input = (deltas[t] * us[t]).unsqueeze(2) * Bs[t];
      if (zoh) input = input * zoh_factor(x);
      h = x.exp() * h + input;
      const at::Tensor product = (Cs[t] * h).sum(2);
      segment[t] = complex ? 2 * at::real(product) : product;
    }
    ys.insert(ys.end(), segment.begin(), segment.end());
    finals.push_back(h);
  }
  at::Tensor y = ys.empty() ? at::zeros(u.sizes(), u.options()) : at::stack(ys, 1);
  // cat copies, so that the state of no steps is no alias of the initial one.
  const at::Tensor final_state = finals.empty() ? at::zeros({0, channels, state}, A.options()) : at::cat(finals);
  if (present(o.D)) y = y + u * *o.D;
  if (present(o.z)) y = y * at::silu(o.z->to(real));
  if (valid.defined()) y = at::where(valid, y, at::zeros_like(y));
  return {y.to(u_in.scalar_type()), final_state};
}

}  // namespace adder::ops
