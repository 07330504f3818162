#include <torch/library.h>

#include "adder/ops/add_norm_call.h"

namespace adder::ops {
namespace {

struct CpuNorm {
  template <typename T, typename Out>
  static void forward(const kernels::AddNormForward<T, Out>& p) {
    kernels::cpu::add_norm_forward(p);
  }
  template <typename T, typename Out>
  static int64_t backward_workspace_bytes(const kernels::AddNormBackward<T, Out>& p) {
    return kernels::cpu::add_norm_backward_workspace_bytes(p);
  }
  template <typename T, typename Out>
  static void backward(const kernels::AddNormBackward<T, Out>& p) {
    kernels::cpu::add_norm_backward(p);
  }
};

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("_add_norm_fwd", TORCH_FN(norm_forward<CpuNorm>));
  m.impl("_add_norm_bwd", TORCH_FN(norm_backward<CpuNorm>));
}

}  // namespace
}  // namespace adder::ops
