#include "adder/ops/small_linear.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/kernels/small_linear.h"
#include "adder/ops/checks.h"
#include "adder/ops/small_linear_schema.h"

namespace adder::ops {
namespace {

constexpr const char* kOp = "small_linear";

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("small_linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
}

at::Tensor meta_forward(ADDER_SMALL_LINEAR_ARGUMENTS) {
  check_small_linear(ADDER_SMALL_LINEAR_NAMES);
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("small_linear", TORCH_FN(meta_forward));
}

}  // namespace

void check_small_linear(ADDER_SMALL_LINEAR_ARGUMENTS) {
  check_floating(kOp, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1, kOp, ": x must have shape (..., I), got a scalar");
  const at::ScalarType type = x.scalar_type(), got = weight.scalar_type();
  TORCH_CHECK_VALUE(got == type || (type == at::kFloat && (got == at::kBFloat16 || got == at::kHalf)), kOp,
                    ": weight must have the dtype of x (", type, ")", type == at::kFloat ? ", BFloat16 or Half" : "",
                    ", got ", got);
  check_shape(kOp, "weight", weight, "(O, I)", {-1, x.sym_size(-1)});
  check_device(kOp, "weight", weight, x, "x");
  if (!present(bias)) return;
  check_floating(kOp, "bias", *bias);
  check_shape(kOp, "bias", *bias, "(O)", {weight.sym_size(0)});
  check_device(kOp, "bias", *bias, x, "x");
}

at::Tensor small_linear(ADDER_SMALL_LINEAR_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::small_linear", "")
                             .typed<at::Tensor(ADDER_SMALL_LINEAR_ARGUMENTS)>();
  return op.call(ADDER_SMALL_LINEAR_NAMES);
}

at::Tensor small_linear_composite(ADDER_SMALL_LINEAR_ARGUMENTS) {
  const at::ScalarType real = accumulator_type(x.scalar_type());
  const OptionalTensor wide_bias = present(bias) ? OptionalTensor(bias->to(real)) : OptionalTensor();
  return at::linear(x.to(real), weight.to(real), wide_bias).to(x.scalar_type());
}

at::Tensor linear(ADDER_SMALL_LINEAR_ARGUMENTS) {
  const at::ScalarType type = x.scalar_type(), weight_type = weight.scalar_type();
  const bool gradient = at::GradMode::is_enabled() && any_requires_grad({x, weight, bias});
  if (!gradient && x.is_cpu() && x.dim() >= 1 && x.numel() <= kernels::kSmallLinearRows * x.size(-1) &&
      (type == weight_type || type == at::kFloat))
    return small_linear(ADDER_SMALL_LINEAR_NAMES);
  const OptionalTensor own_bias = present(bias) ? OptionalTensor(bias->to(weight_type)) : OptionalTensor();
  return at::linear(x.to(weight_type), weight, own_bias).to(type);
}

}  // namespace adder::ops
