#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/library.h>

#include "adder/ops/autograd.h"
#include "adder/ops/checks.h"
#include "adder/ops/linear_cross_entropy_schema.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  static variable_list forward(AutogradContext* context, ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS,
                               HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    auto [loss, row_losses, predictions, dx, dweight] =
        linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, true);
    // Empty: x and weight are not kept for the backward pass, what the gradients depend on is.
    const at::Tensor inputs = at::empty({0}, x.options());
    refuse_second_derivative("linear_cross_entropy", edges_of({x, weight}), {inputs});
    context->save_for_backward({dx, dweight, inputs});
    context->saved_data["weight_dtype"] = weight.scalar_type();
    context->mark_non_differentiable({row_losses, predictions});
    return {loss, row_losses, predictions};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const at::ScalarType weight_dtype = context->saved_data["weight_dtype"].toScalarType();
    const at::Tensor none, &dloss = grads[0];
    // The usual incoming gradient is exactly 1: the pass over dweight is then saved. A compiler's stand-in has no
    // value, and gradients that are recorded must be tensors of their own.
    const bool recorded = at::GradMode::is_enabled();
    const bool one = !recorded && dloss.is_cpu() && !at::isTensorSubclassLike(dloss) && dloss.item<double>() == 1;
    // The derivative with respect to dloss is that of the product; the one with respect to x and weight is refused.
    const auto own = [&](const at::Tensor& grad) {
      if (!recorded) return grad;
      const at::Tensor copy = grad.clone();
      refuse_second_derivative("linear_cross_entropy", edges_of({saved[2], grad}), {copy});
      return copy;
    };
    const auto scaled = [&](const at::Tensor& grad) { return one ? grad : own(grad) * dloss.to(grad.scalar_type()); };
    return {scaled(saved[0]), scaled(saved[1]).to(weight_dtype), none, none, none, none};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> with_gradient(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  check_no_forward_gradient("linear_cross_entropy", {x, weight});
  if (at::GradMode::is_enabled() && any_requires_grad({x, weight})) {
    HiddenTransforms transforms;
    variable_list out = LinearCrossEntropyFunction::apply(ADDER_LINEAR_CROSS_ENTROPY_NAMES, transforms);
    return {out[0], out[1], out[2]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  auto [loss, row_losses, predictions, dx, dweight] = linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, false);
  return {loss, row_losses, predictions};
}

// Reached where torch.func.grad lies within another transform that wants derivatives.
LinearCrossEntropyResult no_derivative_of_forward(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad) {
  check_no_forward_gradient("linear_cross_entropy", {x, weight});
  at::AutoDispatchBelowADInplaceOrView guard;
  LinearCrossEntropyResult out = linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, need_grad);
  auto& [loss, row_losses, predictions, dx, dweight] = out;
  refuse_second_derivative("linear_cross_entropy", edges_of({x, weight}), {loss, row_losses, dx, dweight});
  return out;
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("linear_cross_entropy", TORCH_FN(with_gradient));
  m.impl("_linear_cross_entropy_fwd", TORCH_FN(no_derivative_of_forward));
}

}  // namespace
}  // namespace adder::ops
