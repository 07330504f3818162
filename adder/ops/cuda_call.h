#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "adder/kernels/cuda_stream.h"

// What the operators' CUDA registrations share.
namespace adder::ops {

inline kernels::CudaStream current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
}

// A copy on the device of a small tensor in host memory, for which the host does not wait: it would wait for all that
// it has queued. A graph that is being recorded would read the memory again later, and gets the error of a copy that
// waits.
inline at::Tensor copy_of_few(const at::Tensor& tensor, at::Device device) {
  const bool records = c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
  return records ? tensor.to(device) : tensor.pin_memory().to(device, /*non_blocking=*/true);
}

// Runs an operator's function on the device of its first tensor.
template <auto function, typename Signature = decltype(function)>
struct OnDevice;
template <auto function, typename Result, typename First, typename... Rest>
struct OnDevice<function, Result (*)(First, Rest...)> {
  static Result call(First first, Rest... rest) {
    const c10::cuda::CUDAGuard guard(first.device());
    return function(first, rest...);
  }
};
#define ADDER_CUDA_FN(...) TORCH_FN((::adder::ops::OnDevice<&__VA_ARGS__>::call))

}  // namespace adder::ops
