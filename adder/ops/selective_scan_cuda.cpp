#include "adder/kernels/selective_scan_cuda.h"

#include <torch/library.h>

#include <algorithm>

#include "adder/ops/cuda_call.h"
#include "adder/ops/selective_scan_call.h"

namespace adder::ops {
namespace {

struct CudaScan {
  static at::Tensor steps_last(const at::Tensor& t) { return steps_last_on_cuda(t); }
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device device) { return copy_of_few(cu_seqlens, device); }
  template <typename T>
  static int64_t forward_workspace_bytes(const kernels::SelectiveScanForward<T>& p) {
    return kernels::cuda::selective_scan_forward_workspace_bytes(p);
  }
  template <typename T>
  static void forward(const kernels::SelectiveScanForward<T>& p) {
    kernels::cuda::selective_scan_forward(p, current_stream());
  }
  template <typename T>
  static int64_t backward_workspace_bytes(const kernels::SelectiveScanInputs<T>& p) {
    return kernels::cuda::selective_scan_backward_workspace_bytes(p);
  }
  template <typename T>
  static void backward(const kernels::SelectiveScanBackward<T>& p) {
    kernels::cuda::selective_scan_backward(p, current_stream());
  }
};

bool any_steps_side_by_side(std::initializer_list<OptionalTensor> tensors) {
  return std::ranges::any_of(tensors, [](const OptionalTensor& t) { return present(t) && steps_side_by_side(*t); });
}

bool takes_steps(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  (void)initial_state;  // has no part in it, and may be copied for a call
  if (present(cu_seqlens)) return false;
  bool takes = false;
  dispatch_floating(u.scalar_type(), [&]<typename T>() {
    if constexpr (!std::is_same_v<T, double>) {
      const ScanCall<T, CudaScan> call(u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization,
                                       std::nullopt, mask, cu_seqlens, reverse);
      takes = kernels::cuda::selective_scan_takes_steps(call.inputs);
    }
  });
  return takes;
}

ScanForwardResult cuda_forward(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save) {
  if (!any_steps_side_by_side({u, delta, B, C, z}))
    return scan_forward<CudaScan>(ADDER_SELECTIVE_SCAN_NAMES, save, false);
  check_selective_scan(ADDER_SELECTIVE_SCAN_NAMES);
  if (steps_side_by_side(u) && takes_steps(ADDER_SELECTIVE_SCAN_NAMES))
    return scan_forward<CudaScan>(ADDER_SELECTIVE_SCAN_NAMES, save, true);
  auto [y, final_state, border] = scan_forward<CudaScan>(
      rows_on_cuda(u), rows_on_cuda(delta), A, rows_on_cuda(B), rows_on_cuda(C), D, rows_on_cuda(z), delta_bias,
      delta_softplus, discretization, initial_state, mask, cu_seqlens, reverse, save, false);
  return {laid_as<CudaScan>(y, u), final_state, border};
}

ScanBackwardResult cuda_backward(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                 const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  if (!any_steps_side_by_side({dy, u, delta, B, C, z}))
    return scan_backward<CudaScan>(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES);
  check_selective_scan_bwd(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES);
  const ScanBackwardResult result =
      scan_backward<CudaScan>(rows_on_cuda(dy), dfinal_state, border_states, rows_on_cuda(u), rows_on_cuda(delta), A,
                              rows_on_cuda(B), rows_on_cuda(C), D, rows_on_cuda(z), delta_bias, delta_softplus,
                              discretization, initial_state, mask, cu_seqlens, reverse);
  return laid_as<CudaScan>(result, u, delta, B, C, z);
}

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("_selective_scan_fwd", ADDER_CUDA_FN(cuda_forward));
  m.impl("_selective_scan_bwd", ADDER_CUDA_FN(cuda_backward));
}

}  // namespace
}  // namespace adder::ops
