#include "adder/kernels/small_linear_cuda.h"

#include <torch/library.h>

#include "adder/ops/cuda_call.h"
#include "adder/ops/small_linear_call.h"

namespace adder::ops {
namespace {

struct CudaSmallLinear {
  template <typename X, typename W>
  static void run(const kernels::SmallLinear<X, W>& p) {
    kernels::cuda::small_linear(p, current_stream());
  }
};

TORCH_LIBRARY_IMPL(adder, CUDA, m) {
  m.impl("small_linear", ADDER_CUDA_FN(small_linear_forward<CudaSmallLinear>));
}

}  // namespace
}  // namespace adder::ops
