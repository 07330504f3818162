#include "adder/kernels/causal_conv1d_cuda.h"

#include <torch/library.h>

#include "adder/ops/causal_conv1d_call.h"
#include "adder/ops/cuda_call.h"

namespace adder::ops {
namespace {

struct CudaConv {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device device) { return copy_of_few(cu_seqlens, device); }
  static at::Tensor steps_last(const at::Tensor& t) { return steps_last_on_cuda(t); }
  template <typename T>
  static void forward(const kernels::CausalConv1dForward<T>& p) {
    kernels::cuda::causal_conv1d_forward(p, current_stream());
  }
  template <typename T>
  static int64_t backward_workspace_bytes(const kernels::CausalConv1dInputs<T>& p) {
    return kernels::cuda::causal_conv1d_backward_workspace_bytes(p);
  }
  template <typename T>
  static void backward(const kernels::CausalConv1dBackward<T>& p) {
    kernels::cuda::causal_conv1d_backward(p, current_stream());
  }
};

bool takes_steps(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  (void)initial_window;  // has no part in it, and may be copied for a call
  if (present(cu_seqlens)) return false;
  bool takes = false;
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    const ConvCall<T, CudaConv> call(x, weight, bias, activation, std::nullopt, mask, cu_seqlens, reverse);
    takes = kernels::cuda::causal_conv1d_takes_steps(call.inputs);
  });
  return takes;
}

ConvForwardResult cuda_forward(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  if (!steps_side_by_side(x)) return conv_forward<CudaConv>(ADDER_CAUSAL_CONV1D_NAMES, false);
  check_causal_conv1d(ADDER_CAUSAL_CONV1D_NAMES);
  if (takes_steps(ADDER_CAUSAL_CONV1D_NAMES)) return conv_forward<CudaConv>(ADDER_CAUSAL_CONV1D_NAMES, true);
  auto [y, final_window] = conv_forward<CudaConv>(rows_on_cuda(x), weight, bias, activation, initial_window, mask,
                                                  cu_seqlens, reverse, false);
  return {laid_as<CudaConv>(y, x), final_window};
}

ConvBackwardResult cuda_backward(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                 ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  if (!steps_side_by_side(x) && !steps_side_by_side(dy))
    return conv_backward<CudaConv>(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES, false);
  check_causal_conv1d_bwd(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES);
  if (steps_side_by_side(x) && takes_steps(ADDER_CAUSAL_CONV1D_NAMES)) {
    at::Tensor as_steps = steps_side_by_side(dy) ? dy.movedim(1, -1).contiguous() : steps_last_on_cuda(dy);
    if (reinterpret_cast<uintptr_t>(as_steps.const_data_ptr()) % 16 != 0) as_steps = as_steps.clone();
    return conv_backward<CudaConv>(as_steps.movedim(-1, 1), dfinal_window, ADDER_CAUSAL_CONV1D_NAMES, true);
  }
  auto [dx, dweight, dbias, dinitial] =
      conv_backward<CudaConv>(rows_on_cuda(dy), dfinal_window, rows_on_cuda(x), weight, bias, activation,
                              initial_window, mask, cu_seqlens, reverse, false);
  return {laid_as<CudaConv>(dx, x), dweight, dbias, dinitial};
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("causal_conv1d", ADDER_CUDA_FN(cuda_forward));
  m.impl("_causal_conv1d_bwd", ADDER_CUDA_FN(cuda_backward));
}

}  // namespace
}  // namespace adder::ops
