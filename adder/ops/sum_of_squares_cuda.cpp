#include "adder/kernels/sum_of_squares_cuda.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <vector>

#include "adder/ops/cuda_call.h"

namespace adder::ops {
namespace {

template <typename T>
double* add_squares(at::TensorList tensors, at::ScalarType type, double* parts) {
  std::vector<kernels::cuda::SquaredValues<T>> values;
  std::vector<at::Tensor> kept;
  int64_t count = 0;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.scalar_type() != type) continue;
    kept.push_back(tensor.contiguous());
    values.push_back({kept.back().const_data_ptr<T>(), tensor.numel()});
    count += kernels::cuda::sum_of_squares_parts(tensor.numel());
  }
  kernels::cuda::sum_of_squares(values.data(), static_cast<int64_t>(values.size()), parts, current_stream());
  return parts + count;
}

at::Tensor cuda_sum(at::TensorList tensors) {
  const c10::cuda::CUDAGuard guard(tensors[0].device());
  const at::TensorOptions options = tensors[0].options().dtype(at::kDouble);
  int64_t count = 0;
  for (const at::Tensor& tensor : tensors) count += kernels::cuda::sum_of_squares_parts(tensor.numel());
  const at::Tensor parts = at::empty({count}, options), total = at::empty({}, options);
  double* const rest = add_squares<float>(tensors, at::kFloat, parts.mutable_data_ptr<double>());
  add_squares<double>(tensors, at::kDouble, rest);
  kernels::cuda::sum_of_squares_total(parts.const_data_ptr<double>(), count, total.mutable_data_ptr<double>(),
                                      current_stream());
  return total;
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("sum_of_squares", TORCH_FN(cuda_sum));
}

}  // namespace
}  // namespace adder::ops
