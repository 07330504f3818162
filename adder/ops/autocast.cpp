#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "adder/ops/add_norm.h"
#include "adder/ops/causal_conv1d.h"
#include "adder/ops/checks.h"
#include "adder/ops/linear_cross_entropy.h"
#include "adder/ops/selective_scan.h"
#include "adder/ops/small_linear.h"

#include "adder/ops/add_norm_schema.h"
#include "adder/ops/causal_conv1d_schema.h"
#include "adder/ops/linear_cross_entropy_schema.h"
#include "adder/ops/selective_scan_schema.h"
#include "adder/ops/small_linear_schema.h"

// Under torch.autocast: activations that meet in one operator take the widest of their types; parameters and states of
// the recurrence and the convolution, and the residual stream, are float32; products (linear_cross_entropy,
// small_linear) are made in autocast's type, as those of torch.nn.functional.linear. float64 stays as it is.
namespace adder::ops {
namespace {

using Optional = std::optional<at::Tensor>;

class WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

bool narrowable(const at::Tensor& t) {
  return t.is_floating_point() && t.scalar_type() != at::kDouble;
}
at::Tensor as(const at::Tensor& t, at::ScalarType type) {
  return narrowable(t) ? t.to(type) : t;
}
Optional as(const Optional& t, at::ScalarType type) {
  return present(t) ? Optional(as(*t, type)) : Optional();
}

at::ScalarType widest(std::initializer_list<Optional> activations) {
  std::optional<at::ScalarType> type;
  for (const Optional& t : activations) {
    if (!present(t) || !narrowable(*t)) continue;
    type = type ? at::promote_types(*type, t->scalar_type()) : t->scalar_type();
  }
  return type.value_or(at::kFloat);
}

std::tuple<at::Tensor, at::Tensor> cast_selective_scan(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  const WithoutAutocast without;
  const auto per_step = [](const at::Tensor& t) { return t.dim() == 4 ? Optional(t) : Optional(); };
  const at::ScalarType type = widest({u, delta, z, per_step(B), per_step(C)});
  const auto own = [&](const at::Tensor& t) { return as(t, t.dim() == 4 ? type : at::kFloat); };
  return selective_scan(as(u, type), as(delta, type), as(A, at::kFloat), own(B), own(C),
                        {as(D, at::kFloat), as(z, type), as(delta_bias, at::kFloat), delta_softplus,
                         std::string(discretization), as(initial_state, at::kFloat), mask, cu_seqlens, reverse});
}

std::tuple<at::Tensor, at::Tensor> cast_causal_conv1d(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  const WithoutAutocast without;
  return causal_conv1d_fwd(x, as(weight, at::kFloat), as(bias, at::kFloat), activation, as(initial_window, at::kFloat),
                           mask, cu_seqlens, reverse);
}

std::tuple<at::Tensor, at::Tensor> cast_add_norm(ADDER_ADD_NORM_ARGUMENTS) {
  const WithoutAutocast without;
  return add_norm(x, as(residual, at::kFloat), weight, bias, {std::string(kind), eps, out_dtype});
}

// As at::linear's are: once for all uses of a parameter, until autocast ends.
at::Tensor for_products(const at::Tensor& t, const at::Tensor& x) {
  const at::DeviceType device = x.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> cast_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  const WithoutAutocast without;
  // A float32 weight is what the operator wants beside narrow activations: its gradient is not rounded then.
  const bool wide = weight.scalar_type() == at::kFloat;
  return linear_cross_entropy(for_products(x, x), wide ? weight : for_products(weight, x), target, ignore_index, vocab);
}

at::Tensor cast_small_linear(ADDER_SMALL_LINEAR_ARGUMENTS) {
  const WithoutAutocast without;
  return small_linear(for_products(x, x), for_products(weight, x), bias);
}

void add_casts(torch::Library& m) {
  m.impl("selective_scan", TORCH_FN(cast_selective_scan));
  m.impl("causal_conv1d", TORCH_FN(cast_causal_conv1d));
  m.impl("add_norm", TORCH_FN(cast_add_norm));
  m.impl("linear_cross_entropy", TORCH_FN(cast_linear_cross_entropy));
  m.impl("small_linear", TORCH_FN(cast_small_linear));
}

TORCH_LIBRARY_IMPL(adder, AutocastCPU, m) {
  add_casts(m);
}
TORCH_LIBRARY_IMPL(adder, AutocastCUDA, m) {
  add_casts(m);
}

}  // namespace
}  // namespace adder::ops
