#include "adder/kernels/selective_scan_cuda.h"

#include <limits>

namespace adder::kernels::cuda {

template <typename T>
ScanAlgorithm choose_scan(const SelectiveScanInputs<T>& p) {
  if constexpr (std::is_same_v<T, double>) {
    (void)p;
    return ScanAlgorithm::kGeneric;
  } else {
    const bool plain_numbers = !p.complex && p.discretization == Discretization::kEuler;
    const bool states = p.state == 8 || p.state == 16;
    const bool fits = p.layout.length < (int64_t{1} << 30) &&
                      p.layout.sequences * (p.channels / 16 + p.groups) < std::numeric_limits<int32_t>::max();
    return plain_numbers && states && fits && !p.constant_B && !p.constant_C ? ScanAlgorithm::kFast
                                                                             : ScanAlgorithm::kGeneric;
  }
}

template <typename T>
int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>& params) {
  if constexpr (!std::is_same_v<T, double>)
    if (choose_scan<T>(params) == ScanAlgorithm::kFast) return scan_parts_workspace_bytes<T>(params);
  return 0;
}

template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>)
    if (choose_scan<T>(params) == ScanAlgorithm::kFast) return selective_scan_forward_fast(params, stream);
  selective_scan_forward_generic(params, stream);
}

namespace {

template <typename T>
bool backward_is_fast(const SelectiveScanInputs<T>& p) {
  return choose_scan(p) == ScanAlgorithm::kFast && selective_scan_backward_fast_fits(p);
}

}  // namespace

template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& inputs) {
  if constexpr (!std::is_same_v<T, double>)
    if (backward_is_fast(inputs)) return selective_scan_backward_fast_workspace_bytes(inputs);
  return selective_scan_backward_generic_workspace_bytes(inputs);
}

template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>)
    if (backward_is_fast<T>(params)) return selective_scan_backward_fast(params, stream);
  selective_scan_backward_generic(params, stream);
}

#define ADDER_INSTANTIATE(T)                                                               \
  template ScanAlgorithm choose_scan(const SelectiveScanInputs<T>&);                       \
  template int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>&); \
  template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_forward(const SelectiveScanForward<T>&, CudaStream);        \
  template void selective_scan_backward(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
