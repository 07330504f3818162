#include <ATen/ATen.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "adder/ops/checks.h"
#include "adder/ops/linear_cross_entropy_schema.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  static variable_list forward(AutogradContext* context, ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [loss, row_losses, predictions, dx, dweight] =
        linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, true);
    context->save_for_backward({dx, dweight});
    context->saved_data["weight_dtype"] = weight.scalar_type();
    context->mark_non_differentiable({row_losses, predictions});
    return {loss, row_losses, predictions};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "linear_cross_entropy: has no second derivative; linear_cross_entropy_composite has");
    const variable_list saved = context->get_saved_variables();
    const at::ScalarType weight_dtype = context->saved_data["weight_dtype"].toScalarType();
    const at::Tensor none, &dloss = grads[0];
    // The usual incoming gradient is exactly 1: the pass over dweight is then saved. A compiler's stand-in has no
    // value.
    const bool one = dloss.is_cpu() && !at::isTensorSubclassLike(dloss) && dloss.item<double>() == 1;
    const auto scaled = [&](const at::Tensor& grad) { return one ? grad : grad * dloss.to(grad.scalar_type()); };
    return {scaled(saved[0]), scaled(saved[1]).to(weight_dtype), none, none, none};
  }
};

std::tuple<at::Tensor, at::Tensor, at::Tensor> with_gradient(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  check_no_forward_gradient("linear_cross_entropy", {x, weight});
  if (at::GradMode::is_enabled() && any_requires_grad({x, weight})) {
    variable_list out = LinearCrossEntropyFunction::apply(ADDER_LINEAR_CROSS_ENTROPY_NAMES);
    return {out[0], out[1], out[2]};
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  auto [loss, row_losses, predictions, dx, dweight] = linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, false);
  return {loss, row_losses, predictions};
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("linear_cross_entropy", TORCH_FN(with_gradient));
}

}  // namespace
}  // namespace adder::ops
