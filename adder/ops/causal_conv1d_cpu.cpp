#include <torch/library.h>

#include "adder/ops/causal_conv1d_call.h"

namespace adder::ops {
namespace {

struct CpuConv {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device) { return cu_seqlens; }
  static at::Tensor steps_last(const at::Tensor& t) { return t.movedim(1, -1).contiguous(); }
  template <typename T>
  static void forward(const kernels::CausalConv1dForward<T>& p) {
    kernels::cpu::causal_conv1d_forward(p);
  }
  template <typename T>
  static int64_t backward_workspace_bytes(const kernels::CausalConv1dInputs<T>& p) {
    return kernels::cpu::causal_conv1d_backward_workspace_bytes(p);
  }
  template <typename T>
  static void backward(const kernels::CausalConv1dBackward<T>& p) {
    kernels::cpu::causal_conv1d_backward(p);
  }
};

// Inputs are read faster as they lie than they are copied.
ConvForwardResult cpu_forward(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  auto [y, final_window] = conv_forward<CpuConv>(ADDER_CAUSAL_CONV1D_NAMES, false);
  return {laid_as<CpuConv>(y, x), final_window};
}

ConvBackwardResult cpu_backward(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  auto [dx, dweight, dbias, dinitial] = conv_backward<CpuConv>(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES, false);
  return {laid_as<CpuConv>(dx, x), dweight, dbias, dinitial};
}

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("causal_conv1d", TORCH_FN(cpu_forward));
  m.impl("_causal_conv1d_bwd", TORCH_FN(cpu_backward));
}

}  // namespace
}  // namespace adder::ops
