#include <torch/library.h>

#include "adder/ops/causal_conv1d_call.h"

namespace adder::ops {
namespace {

struct CpuConv {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device) { return cu_seqlens; }
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

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("causal_conv1d", TORCH_FN(conv_forward<CpuConv>));
  m.impl("_causal_conv1d_bwd", TORCH_FN(conv_backward<CpuConv>));
}

}  // namespace
}  // namespace adder::ops
