#include <torch/library.h>

#include "adder/ops/selective_scan_call.h"

namespace adder::ops {
namespace {

struct CpuScan {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device) { return cu_seqlens; }
  template <typename T>
  static int64_t forward_workspace_bytes(const kernels::SelectiveScanForward<T>&) {
    return 0;
  }
  template <typename T>
  static void forward(const kernels::SelectiveScanForward<T>& p) {
    kernels::cpu::selective_scan_forward(p);
  }
  template <typename T>
  static int64_t backward_workspace_bytes(const kernels::SelectiveScanInputs<T>& p) {
    return kernels::cpu::selective_scan_backward_workspace_bytes(p);
  }
  template <typename T>
  static void backward(const kernels::SelectiveScanBackward<T>& p) {
    kernels::cpu::selective_scan_backward(p);
  }
};

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("_selective_scan_fwd", TORCH_FN(scan_forward<CpuScan>));
  m.impl("_selective_scan_bwd", TORCH_FN(scan_backward<CpuScan>));
}

}  // namespace
}  // namespace adder::ops
