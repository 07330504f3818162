#include "adder/kernels/selective_scan_cuda.h"

#include <limits>

namespace adder::kernels::cuda {

template <typename T>
ScanAlgorithm choose_scan(const SelectiveScanInputs<T>& p, bool backward) {
  if constexpr (std::is_same_v<T, double>) {
    (void)p, (void)backward;
    return ScanAlgorithm::kGeneric;
  } else {
    const bool plain_numbers = !p.complex && p.discretization == Discretization::kEuler;
    const bool states = p.state == 8 || p.state == 16;
    const bool fits = p.layout.length < (int64_t{1} << 30) &&
                      p.layout.sequences * (p.channels / 16 + p.groups) < std::numeric_limits<int32_t>::max();
    if (!plain_numbers || !states || !fits || p.constant_B || p.constant_C) return ScanAlgorithm::kGeneric;
    const int64_t few = backward ? 8 : 15;
    if (p.layout.cu_seqlens == nullptr && p.layout.length >= 1 && p.layout.length <= few) return ScanAlgorithm::kShort;
    return backward && !selective_scan_backward_fast_fits(p) ? ScanAlgorithm::kGeneric : ScanAlgorithm::kFast;
  }
}

template <typename T>
int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>& params) {
  if constexpr (!std::is_same_v<T, double>)
    if (choose_scan<T>(params, false) == ScanAlgorithm::kFast) return scan_parts_workspace_bytes<T>(params, false);
  return 0;
}

template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    const ScanAlgorithm algorithm = choose_scan<T>(params, false);
    if (algorithm == ScanAlgorithm::kFast) return selective_scan_forward_fast(params, stream);
    if (algorithm == ScanAlgorithm::kShort) {
      // One chunk, which begins with the initial state: the backward pass of a few steps reads that.
      SelectiveScanForward<T> p = params;
      if (choose_scan<T>(params, true) == ScanAlgorithm::kShort) p.border_states = nullptr;
      return selective_scan_forward_short(p, stream);
    }
  }
  selective_scan_forward_generic(params, stream);
}

template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& inputs) {
  if constexpr (!std::is_same_v<T, double>) {
    const ScanAlgorithm algorithm = choose_scan(inputs, true);
    if (algorithm == ScanAlgorithm::kFast) return selective_scan_backward_fast_workspace_bytes(inputs);
    if (algorithm == ScanAlgorithm::kShort) return selective_scan_backward_short_workspace_bytes(inputs);
  }
  return selective_scan_backward_generic_workspace_bytes(inputs);
}

template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    const ScanAlgorithm algorithm = choose_scan<T>(params, true);
    if (algorithm == ScanAlgorithm::kFast) return selective_scan_backward_fast(params, stream);
    if (algorithm == ScanAlgorithm::kShort) return selective_scan_backward_short(params, stream);
  }
  selective_scan_backward_generic(params, stream);
}

#define ADDER_INSTANTIATE(T)                                                               \
  template ScanAlgorithm choose_scan(const SelectiveScanInputs<T>&, bool);                 \
  template int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>&); \
  template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_forward(const SelectiveScanForward<T>&, CudaStream);        \
  template void selective_scan_backward(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
