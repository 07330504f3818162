#include "adder/kernels/selective_scan_cuda.h"

#include <torch/library.h>

#include "adder/ops/cuda_call.h"
#include "adder/ops/selective_scan_call.h"

namespace adder::ops {
namespace {

struct CudaScan {
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

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("_selective_scan_fwd", ADDER_CUDA_FN(scan_forward<CudaScan>));
  m.impl("_selective_scan_bwd", ADDER_CUDA_FN(scan_backward<CudaScan>));
}

}  // namespace
}  // namespace adder::ops
