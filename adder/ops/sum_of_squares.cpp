#include "adder/ops/sum_of_squares.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "adder/kernels/sum_of_squares.h"
#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("sum_of_squares(Tensor[] tensors) -> Tensor");
}

at::Tensor cpu_sum(at::TensorList tensors) {
  double sum = 0;
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor values = tensor.contiguous();
    if (values.scalar_type() == at::kDouble)
      sum += kernels::cpu::sum_of_squares(values.const_data_ptr<double>(), values.numel(), at::get_num_threads());
    else
      sum += kernels::cpu::sum_of_squares(values.const_data_ptr<float>(), values.numel(), at::get_num_threads());
  }
  return at::scalar_tensor(sum, at::kDouble);
}

at::Tensor meta_sum(at::TensorList tensors) {
  return at::empty({}, tensors[0].options().dtype(at::kDouble));
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("sum_of_squares", TORCH_FN(meta_sum));
}
TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("sum_of_squares", TORCH_FN(cpu_sum));
}

at::Tensor no_derivative(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    check_no_forward_gradient("sum_of_squares", {tensor});
    TORCH_CHECK_NOT_IMPLEMENTED(
        !at::GradMode::is_enabled() || !tensor.requires_grad(),
        "sum_of_squares: has no derivative; call it under torch.no_grad() or detach its tensors");
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  return sum_of_squares(tensors);
}

TORCH_LIBRARY_IMPL(adder, Autograd, m) {
  m.impl("sum_of_squares", TORCH_FN(no_derivative));
}

}  // namespace

at::Tensor sum_of_squares(at::TensorList tensors) {
  if (tensors.empty()) return at::zeros({}, at::kDouble);
  for (const at::Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kDouble,
                      "sum_of_squares: tensors must have dtype Float or Double, got ", tensor.scalar_type());
    check_device("sum_of_squares", "a tensor", tensor, tensors[0], "the first");
  }
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("adder::sum_of_squares", "").typed<at::Tensor(at::TensorList)>();
  return op.call(tensors);
}

}  // namespace adder::ops
