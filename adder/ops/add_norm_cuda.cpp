#include "adder/kernels/add_norm_cuda.h"

#include <torch/library.h>

#include "adder/ops/add_norm_call.h"
#include "adder/ops/cuda_call.h"

namespace adder::ops {
namespace {

struct CudaNorm {
  template <typename T, typename Out>
  static void forward(const kernels::AddNormForward<T, Out>& p) {
    kernels::cuda::add_norm_forward(p, current_stream());
  }
  template <typename T, typename Out>
  static int64_t backward_workspace_bytes(const kernels::AddNormBackward<T, Out>& p) {
    return kernels::cuda::add_norm_backward_workspace_bytes(p);
  }
  template <typename T, typename Out>
  static void backward(const kernels::AddNormBackward<T, Out>& p) {
    kernels::cuda::add_norm_backward(p, current_stream());
  }
};

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("_add_norm_fwd", ADDER_CUDA_FN(norm_forward<CudaNorm>));
  m.impl("_add_norm_bwd", ADDER_CUDA_FN(norm_backward<CudaNorm>));
}

}  // namespace
}  // namespace adder::ops
