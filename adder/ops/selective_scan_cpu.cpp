#include <torch/library.h>

#include "adder/ops/selective_scan_call.h"

namespace adder::ops {
namespace {

struct CpuScan {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device) { return cu_seqlens; }
  static at::Tensor steps_last(const at::Tensor& t) { return t.movedim(1, -1).contiguous(); }
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

// Inputs are read faster as they lie than they are copied.
ScanForwardResult cpu_forward(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save) {
  auto [y, final_state, border] = scan_forward<CpuScan>(ADDER_SELECTIVE_SCAN_NAMES, save, false);
  return {laid_as<CpuScan>(y, u), final_state, border};
}

ScanBackwardResult cpu_backward(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  return laid_as<CpuScan>(scan_backward<CpuScan>(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES), u, delta,
                          B, C, z);
}

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("_selective_scan_fwd", TORCH_FN(cpu_forward));
  m.impl("_selective_scan_bwd", TORCH_FN(cpu_backward));
}

}  // namespace
}  // namespace adder::ops
