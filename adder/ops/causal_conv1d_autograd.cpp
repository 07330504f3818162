#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/autograd.h"
#include "adder/ops/causal_conv1d_schema.h"
#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct CausalConv1dFunction : torch::autograd::Function<CausalConv1dFunction> {
  static variable_list forward(AutogradContext* context, ADDER_CAUSAL_CONV1D_ARGUMENTS, HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    auto [y, final_window] = causal_conv1d_fwd(ADDER_CAUSAL_CONV1D_NAMES);
    const auto or_undefined = [](const std::optional<at::Tensor>& t) { return t.value_or(at::Tensor()); };
    context->save_for_backward(
        {x, weight, or_undefined(bias), or_undefined(initial_window), or_undefined(mask), or_undefined(cu_seqlens)});
    context->saved_data["activation"] = std::string(activation);
    context->saved_data["reverse"] = reverse;
    context->set_materialize_grads(false);
    return {y, final_window};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    const at::Tensor &x = saved[0], &bias = saved[2], &window = saved[3], none;
    const at::Tensor dy = grads[0].defined() ? grads[0] : at::zeros_symint(x.sym_sizes(), x.options());
    const std::string activation = context->saved_data["activation"].toStringRef();
    auto [dx, dweight, dbias, dinitial_window] =
        causal_conv1d_bwd(dy, optional(grads[1]), x, saved[1], optional(bias), activation, optional(window),
                          optional(saved[4]), optional(saved[5]), context->saved_data["reverse"].toBool());
    return {dx,   dweight, bias.defined() ? dbias : none, none, window.defined() ? dinitial_window : none, none, none,
            none, none};
  }
};

ConvForwardResult with_gradient(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  check_no_forward_gradient("causal_conv1d", {x, weight, bias, initial_window});
  if (at::GradMode::is_enabled() && any_requires_grad({x, weight, bias, initial_window})) {
    HiddenTransforms transforms;
    const variable_list out = CausalConv1dFunction::apply(ADDER_CAUSAL_CONV1D_NAMES, transforms);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return causal_conv1d_fwd(ADDER_CAUSAL_CONV1D_NAMES);
}

ConvBackwardResult no_second_derivative(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                        ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  check_no_forward_gradient("causal_conv1d", {dy, dfinal_window, x, weight, bias, initial_window});
  at::AutoDispatchBelowADInplaceOrView guard;
  ConvBackwardResult grads = causal_conv1d_bwd(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES);
  auto& [dx, dweight, dbias, dinitial] = grads;
  refuse_second_derivative("causal_conv1d", edges_of({dy, dfinal_window, x, weight, bias, initial_window}),
                           {dx, dweight, dbias, dinitial});
  return grads;
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("causal_conv1d", TORCH_FN(with_gradient));
  m.impl("_causal_conv1d_bwd", TORCH_FN(no_second_derivative));
}

}  // namespace
}  // namespace adder::ops
