#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/add_norm_schema.h"
#include "adder/ops/autograd.h"
#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct AddNormFunction : torch::autograd::Function<AddNormFunction> {
  static variable_list forward(AutogradContext* context, ADDER_ADD_NORM_ARGUMENTS, HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    auto [y, residual_out, rstd, mean] = add_norm_fwd(ADDER_ADD_NORM_NAMES);
    context->save_for_backward({residual_out, weight, rstd, mean});
    context->saved_data["kind"] = std::string(kind);
    context->saved_data["x_dtype"] = x.scalar_type();
    context->saved_data["y_dtype"] = y.scalar_type();
    context->saved_data["residual"] = present(residual);
    context->saved_data["bias_dtype"] = present(bias) ? c10::IValue(bias->scalar_type()) : c10::IValue();
    context->set_materialize_grads(false);
    return {y, residual_out};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &residual_out = saved[0], &weight = saved[1], none;
    const at::ScalarType x_dtype = context->saved_data["x_dtype"].toScalarType();
    const at::ScalarType y_dtype = context->saved_data["y_dtype"].toScalarType();
    const bool residual = context->saved_data["residual"].toBool();
    const c10::IValue bias_dtype = context->saved_data["bias_dtype"];
    const at::Tensor dy = grads[0].defined()
                              ? grads[0]
                              : at::zeros_symint(residual_out.sym_sizes(), residual_out.options().dtype(y_dtype));
    const std::string kind = context->saved_data["kind"].toStringRef();
    auto [dx, dresidual, dweight, dbias] =
        add_norm_bwd(dy, grads[1].defined() ? OptionalTensor(grads[1]) : OptionalTensor(), residual_out, weight,
                     saved[2], saved[3], kind, x_dtype, residual, !bias_dtype.isNone());
    if (residual && x_dtype == residual_out.scalar_type()) dresidual = dx;
    return {dx,
            residual ? dresidual : none,
            dweight.to(weight.scalar_type()),
            bias_dtype.isNone() ? none : dbias.to(bias_dtype.toScalarType()),
            none,
            none,
            none,
            none};
  }
};

std::tuple<at::Tensor, at::Tensor> with_gradient(ADDER_ADD_NORM_ARGUMENTS) {
  check_no_forward_gradient("add_norm", {x, residual, weight, bias});
  if (at::GradMode::is_enabled() && any_requires_grad({x, residual, weight, bias})) {
    HiddenTransforms transforms;
    variable_list out = AddNormFunction::apply(ADDER_ADD_NORM_NAMES, transforms);
    return {out[0], out[1]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  auto [y, residual_out, rstd, mean] = add_norm_fwd(ADDER_ADD_NORM_NAMES);
  return {y, residual_out};
}

AddNormBackwardResult no_second_derivative(ADDER_ADD_NORM_BACKWARD_ARGUMENTS) {
  check_no_forward_gradient("add_norm", {dy, dresidual_out, residual_out, weight});
  at::AutoDispatchBelowADInplaceOrView guard;
  AddNormBackwardResult grads = add_norm_bwd(ADDER_ADD_NORM_BACKWARD_NAMES);
  auto& [dx, dresidual, dweight, dbias] = grads;
  refuse_second_derivative("add_norm", edges_of({dy, dresidual_out, residual_out, weight}),
                           {dx, dresidual, dweight, dbias});
  return grads;
}

// Reached where torch.func.grad lies within another transform that wants derivatives.
AddNormForwardResult no_derivative_of_forward(ADDER_ADD_NORM_ARGUMENTS) {
  check_no_forward_gradient("add_norm", {x, residual, weight, bias});
  at::AutoDispatchBelowADInplaceOrView guard;
  AddNormForwardResult out = add_norm_fwd(ADDER_ADD_NORM_NAMES);
  auto& [y, residual_out, rstd, mean] = out;
  refuse_second_derivative("add_norm", edges_of({x, residual, weight, bias}), {y, residual_out, rstd, mean});
  return out;
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("add_norm", TORCH_FN(with_gradient));
  m.impl("_add_norm_fwd", TORCH_FN(no_derivative_of_forward));
  m.impl("_add_norm_bwd", TORCH_FN(no_second_derivative));
}

}  // namespace
}  // namespace adder::ops
