#include "adder/ops/transposed.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/autograd.h"
#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "transposed";

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("transposed(Tensor x) -> Tensor");
}

at::Tensor cpu_forward(const at::Tensor& x) {
  check_transposed(x);
  return x.transpose(1, 2).clone(at::MemoryFormat::Contiguous);
}

at::Tensor meta_forward(const at::Tensor& x) {
  check_transposed(x);
  return at::empty_symint({x.sym_size(0), x.sym_size(2), x.sym_size(1)}, x.options());
}

struct TransposedFunction : torch::autograd::Function<TransposedFunction> {
  static variable_list forward(AutogradContext*, const at::Tensor& x, HiddenTransforms& transforms) {
    const BelowAutograd below(transforms);
    return {transposed(x)};
  }
  static variable_list backward(AutogradContext*, variable_list grads) { return {transposed(grads[0]), at::Tensor()}; }
};

at::Tensor with_gradient(const at::Tensor& x) {
  check_no_forward_gradient(kOp, {x});
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    HiddenTransforms transforms;
    return TransposedFunction::apply(x, transforms)[0];
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return transposed(x);
}

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("transposed", TORCH_FN(cpu_forward));
}
TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("transposed", TORCH_FN(meta_forward));
}
TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("transposed", TORCH_FN(with_gradient));
}

}  // namespace

void check_transposed(const at::Tensor& x) {
  check_floating(kOp, "x", x);
  check_shape(kOp, "x", x, "(B, M, N)", {-1, -1, -1});
}

at::Tensor transposed(const at::Tensor& x) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adder::transposed", "").typed<at::Tensor(const at::Tensor&)>();
  return op.call(x);
}

}  // namespace adder::ops
