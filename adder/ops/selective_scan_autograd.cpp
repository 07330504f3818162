#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/autograd.h"
#include "adder/ops/checks.h"
#include "adder/ops/selective_scan_schema.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SelectiveScanFunction : torch::autograd::Function<SelectiveScanFunction> {
  static variable_list forward(AutogradContext* context, ADDER_SELECTIVE_SCAN_ARGUMENTS, HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    auto [y, final_state, border] = selective_scan_fwd(ADDER_SELECTIVE_SCAN_NAMES, true);
    const auto or_undefined = [](const OptionalTensor& t) { return t.value_or(at::Tensor()); };
    context->save_for_backward({u, delta, A, B, C, or_undefined(D), or_undefined(z), or_undefined(delta_bias),
                                or_undefined(initial_state), or_undefined(mask), or_undefined(cu_seqlens), border});
    context->saved_data["delta_softplus"] = delta_softplus;
    context->saved_data["discretization"] = std::string(discretization);
    context->saved_data["reverse"] = reverse;
    context->set_materialize_grads(false);
    return {y, final_state};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto optional = [&](size_t i) { return saved[i].defined() ? OptionalTensor(saved[i]) : OptionalTensor(); };
    const at::Tensor dy = grads[0].defined() ? grads[0] : at::zeros_symint(saved[0].sym_sizes(), saved[0].options());
    const OptionalTensor dfinal = grads[1].defined() ? OptionalTensor(grads[1]) : OptionalTensor();
    const std::string discretization = context->saved_data["discretization"].toStringRef();
    auto [du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial] =
        selective_scan_bwd(dy, dfinal, saved[11], saved[0], saved[1], saved[2], saved[3], saved[4], optional(5),
                           optional(6), optional(7), context->saved_data["delta_softplus"].toBool(), discretization,
                           optional(8), optional(9), optional(10), context->saved_data["reverse"].toBool());
    const at::Tensor none;
    const auto if_given = [&](size_t i, const at::Tensor& grad) { return saved[i].defined() ? grad : none; };
    return {du,
            ddelta,
            dA,
            dB,
            dC,
            if_given(5, dD),
            if_given(6, dz),
            if_given(7, dbias),
            none,
            none,
            if_given(8, dinitial),
            none,
            none,
            none,
            none};
  }
};

std::tuple<at::Tensor, at::Tensor> with_gradient(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  check_no_forward_gradient("selective_scan", {ADDER_SELECTIVE_SCAN_TENSORS});
  const bool needed = at::GradMode::is_enabled() && any_requires_grad({ADDER_SELECTIVE_SCAN_TENSORS});
  if (needed) {
    HiddenTransforms transforms;
    variable_list out = SelectiveScanFunction::apply(ADDER_SELECTIVE_SCAN_NAMES, transforms);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  auto [y, final_state, border] = selective_scan_fwd(ADDER_SELECTIVE_SCAN_NAMES, false);
  return {y, final_state};
}

ScanBackwardResult no_second_derivative(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                        const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  check_no_forward_gradient("selective_scan", {dy, dfinal_state, ADDER_SELECTIVE_SCAN_TENSORS});
  at::AutoDispatchBelowADInplaceOrView guard;
  ScanBackwardResult grads = selective_scan_bwd(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES);
  auto& [du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial] = grads;
  refuse_second_derivative("selective_scan", edges_of({dy, dfinal_state, ADDER_SELECTIVE_SCAN_TENSORS}),
                           {du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial});
  return grads;
}

// Reached where torch.func.grad lies within another transform that wants derivatives.
ScanForwardResult no_derivative_of_forward(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save) {
  check_no_forward_gradient("selective_scan", {ADDER_SELECTIVE_SCAN_TENSORS});
  at::AutoDispatchBelowADInplaceOrView guard;
  ScanForwardResult out = selective_scan_fwd(ADDER_SELECTIVE_SCAN_NAMES, save);
  auto& [y, final_state, border] = out;
  refuse_second_derivative("selective_scan", edges_of({ADDER_SELECTIVE_SCAN_TENSORS}), {y, final_state, border});
  return out;
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("selective_scan", TORCH_FN(with_gradient));
  m.impl("_selective_scan_fwd", TORCH_FN(no_derivative_of_forward));
  m.impl("_selective_scan_bwd", TORCH_FN(no_second_derivative));
}

}  // namespace
}  // namespace adder::ops
