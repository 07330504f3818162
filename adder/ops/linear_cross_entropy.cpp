#include "adder/ops/linear_cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/checks.h"
#include "adder/ops/linear_cross_entropy_schema.h"

namespace adder::ops {
namespace {

constexpr const char* kOp = "linear_cross_entropy";

using Losses = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

#define ADDER_LINEAR_CROSS_ENTROPY_SCHEMA \
  "Tensor x, Tensor weight, Tensor target, *, int ignore_index=-100, int vocab=-1"

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("linear_cross_entropy(" ADDER_LINEAR_CROSS_ENTROPY_SCHEMA
        ") -> (Tensor loss, Tensor row_losses, Tensor predictions)");
  m.def("_linear_cross_entropy_fwd(" ADDER_LINEAR_CROSS_ENTROPY_SCHEMA
        ", bool need_grad=False) -> (Tensor loss, Tensor row_losses, Tensor predictions, Tensor dx, Tensor dweight)");
}

Losses without_gradient(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  auto [loss, row_losses, predictions, dx, dweight] = linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_NAMES, false);
  return {loss, row_losses, predictions};
}

LinearCrossEntropyResult meta_forward(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad) {
  check_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_NAMES);
  const at::TensorOptions real = x.options().dtype(accumulator_type(x.scalar_type()));
  const auto rows = x.sym_size(0);
  return {at::empty({}, real), at::empty_symint({rows}, real), at::empty_symint({rows}, x.options().dtype(at::kLong)),
          need_grad ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options()),
          need_grad ? at::empty_symint(weight.sym_sizes(), real) : at::empty({0}, real)};
}

TORCH_LIBRARY_IMPL(adder, CompositeExplicitAutograd, m) {
  m.impl("linear_cross_entropy", TORCH_FN(without_gradient));
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("_linear_cross_entropy_fwd", TORCH_FN(meta_forward));
}

}  // namespace

void check_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  (void)ignore_index;
  const at::ScalarType type = x.scalar_type();
  const bool half = type == at::kBFloat16 || type == at::kHalf;
  check_floating(kOp, "x", x);
  check_shape(kOp, "x", x, "(M, D)", {-1, -1});
  TORCH_CHECK_VALUE(weight.scalar_type() == type || (half && weight.scalar_type() == at::kFloat), kOp,
                    ": weight must have the dtype of x (", type, ")", half ? " or Float" : "", ", got ",
                    weight.scalar_type());
  check_shape(kOp, "weight", weight, "(V, D)", {-1, x.sym_size(1)});
  check_device(kOp, "weight", weight, x, "x");
  check_dtype(kOp, "target", target, at::kLong);
  check_shape(kOp, "target", target, "(M)", {x.sym_size(0)});
  check_device(kOp, "target", target, x, "x");
  TORCH_CHECK_VALUE(weight.sym_size(0) >= 1, kOp, ": weight must have at least one row, got V = 0");
  TORCH_CHECK_VALUE(vocab == -1 || (vocab >= 1 && weight.sym_size(0) >= vocab), kOp,
                    ": vocab must be -1 or lie in [1, V] = [1, ", weight.sym_size(0), "], got ", vocab);
}

LinearCrossEntropyResult linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_linear_cross_entropy_fwd", "")
                             .typed<LinearCrossEntropyResult(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool)>();
  return op.call(ADDER_LINEAR_CROSS_ENTROPY_NAMES, need_grad);
}

Losses linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::linear_cross_entropy", "")
                             .typed<Losses(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS)>();
  return op.call(ADDER_LINEAR_CROSS_ENTROPY_NAMES);
}

Losses linear_cross_entropy_composite(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS) {
  const at::ScalarType real = accumulator_type(x.scalar_type());
  const at::Tensor rows = weight.narrow(0, 0, vocab == -1 ? weight.size(0) : vocab).to(x.scalar_type());
  const at::Tensor logits = at::linear(x, rows).to(real), valid = target != ignore_index;
  const at::Tensor place = at::where(valid, target, at::zeros_like(target)).unsqueeze(1);
  const at::Tensor losses = -logits.log_softmax(1).gather(1, place).squeeze(1);
  const at::Tensor row_losses = at::where(valid, losses, at::zeros_like(losses));
  return {row_losses.sum() / valid.sum().clamp_min(1), row_losses.detach(), logits.argmax(1)};
}

}  // namespace adder::ops
