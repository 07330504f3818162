#include "adder/kernels/causal_conv1d_cuda.h"

#include <torch/library.h>

#include "adder/ops/causal_conv1d_call.h"
#include "adder/ops/cuda_call.h"

namespace adder::ops {
namespace {

struct CudaConv {
  static at::Tensor offsets(const at::Tensor& cu_seqlens, at::Device device) { return copy_of_few(cu_seqlens, device); }
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

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("causal_conv1d", ADDER_CUDA_FN(conv_forward<CudaConv>));
  m.impl("_causal_conv1d_bwd", ADDER_CUDA_FN(conv_backward<CudaConv>));
}

}  // namespace
}  // namespace adder::ops
