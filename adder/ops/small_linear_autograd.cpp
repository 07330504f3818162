#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/autograd.h"
#include "adder/ops/checks.h"
#include "adder/ops/small_linear.h"
#include "adder/ops/small_linear_schema.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct SmallLinearFunction : torch::autograd::Function<SmallLinearFunction> {
  static variable_list forward(AutogradContext* context, ADDER_SMALL_LINEAR_ARGUMENTS, HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    context->save_for_backward({x, weight});
    context->saved_data["bias_dtype"] = present(bias) ? c10::IValue(bias->scalar_type()) : c10::IValue();
    return {small_linear(ADDER_SMALL_LINEAR_NAMES)};
  }

  // Plain torch operations: the second derivative is theirs.
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1];
    const c10::IValue bias_dtype = context->saved_data["bias_dtype"];
    const auto rows = [](const at::Tensor& t) { return t.dim() == 1 ? t.unsqueeze(0) : t.flatten(0, -2); };
    const at::Tensor dy = rows(grads[0]);
    at::Tensor dx, dweight, dbias;
    if (context->needs_input_grad(0)) dx = at::mm(dy, weight.to(x.scalar_type())).reshape_symint(x.sym_sizes());
    if (context->needs_input_grad(1)) dweight = at::mm(dy.t(), rows(x)).to(weight.scalar_type());
    if (!bias_dtype.isNone()) dbias = dy.sum(at::IntArrayRef{0}, false, bias_dtype.toScalarType());
    return {dx, dweight, dbias, at::Tensor()};
  }
};

at::Tensor with_gradient(ADDER_SMALL_LINEAR_ARGUMENTS) {
  check_no_forward_gradient("small_linear", {x, weight, bias});
  if (at::GradMode::is_enabled() && any_requires_grad({x, weight, bias})) {
    HiddenTransforms transforms;
    return SmallLinearFunction::apply(ADDER_SMALL_LINEAR_NAMES, transforms)[0];
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return small_linear(ADDER_SMALL_LINEAR_NAMES);
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("small_linear", TORCH_FN(with_gradient));
}

}  // namespace
}  // namespace adder::ops
