#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/kernels/transpose_cuda.h"
#include "adder/ops/cuda_call.h"
#include "adder/ops/step_layout.h"
#include "adder/ops/transposed.h"

namespace adder::ops {
namespace {

at::Tensor cuda_forward(const at::Tensor& x) {
  check_transposed(x);
  const at::Tensor from = x.stride(2) == 1 || x.size(2) <= 1 ? x : x.contiguous();
  const at::Tensor out = at::empty({x.size(0), x.size(2), x.size(1)}, x.options());
  kernels::cuda::transpose({x.size(0), x.size(1), x.size(2), from.const_data_ptr(), from.stride(0), from.stride(1),
                            out.mutable_data_ptr(), static_cast<int>(x.element_size())},
                           current_stream());
  return out;
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("transposed", ADDER_CUDA_FN(cuda_forward));
}

}  // namespace

at::Tensor steps_last_on_cuda(const at::Tensor& t) {
  return cuda_forward(t.flatten(2)).unflatten(1, t.sizes().slice(2));
}

at::Tensor rows_on_cuda(const at::Tensor& t) {
  if (!steps_side_by_side(t)) return t;
  return cuda_forward(t.movedim(1, -1).flatten(1, -2)).unflatten(2, t.sizes().slice(2));
}

std::optional<at::Tensor> rows_on_cuda(const std::optional<at::Tensor>& t) {
  return t.has_value() && t->defined() ? std::optional(rows_on_cuda(*t)) : t;
}
}  // namespace adder::ops
