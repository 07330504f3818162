#include "adder/kernels/sum_of_squares_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/cuda_call.h"

namespace adder::ops {
namespace {

at::Tensor cuda_sum(at::TensorList tensors) {
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  const at::TensorOptions options = tensors[0].options().dtype(at::kDouble);
  int64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += kernels::cuda::sum_of_squares_parts(tensor.numel());
  const at::Tensor parts = at::empty({count}, options), total = at::empty({}, options);
  double* next = parts.mutable_data_ptr<double>();
  for (const at::Tensor& tensor : tensors) {
    const at::Tensor values = tensor.contiguous();
    if (values.scalar_type() == at::kDouble)
      kernels::cuda::sum_of_squares(values.const_data_ptr<double>(), values.numel(), next, current_stream());
    else
      kernels::cuda::sum_of_squares(values.const_data_ptr<float>(), values.numel(), next, current_stream());
    next += kernels::cuda::sum_of_squares_parts(tensor.numel());
  }
  kernels::cuda::sum_of_squares_total(parts.const_data_ptr<double>(), count, total.mutable_data_ptr<double>(),
                                      current_stream());
  return total;
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("sum_of_squares", TORCH_FN(cuda_sum));
}

}  // namespace
}  // namespace adder::ops
