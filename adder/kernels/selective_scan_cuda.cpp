#include "adder/kernels/selective_scan_cuda.h"

namespace adder::kernels::cuda {

template <typename T>
int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>& params) {
  (void)params;
  return 0;
}

template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params, CudaStream stream) {
  selective_scan_forward_generic(params, stream);
}

template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params, CudaStream stream) {
  selective_scan_backward_generic(params, stream);
}

#define ADDER_INSTANTIATE(T)                                                        \
  template void selective_scan_forward(const SelectiveScanForward<T>&, CudaStream); \
  template void selective_scan_backward(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
