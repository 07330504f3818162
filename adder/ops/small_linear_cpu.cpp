#include <torch/library.h>

#include "adder/ops/small_linear_call.h"

namespace adder::ops {
namespace {

struct CpuSmallLinear {
  template <typename X, typename W>
  static void run(const kernels::SmallLinear<X, W>& p) {
    kernels::cpu::small_linear(p);
  }
};

TORCH_LIBRARY_IMPL(adder, CPU, m) {
  m.impl("small_linear", TORCH_FN(small_linear_forward<CpuSmallLinear>));
}

}  // namespace
}  // namespace adder::ops
