#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "adder/kernels/cuda_stream.h"

// What the operators' CUDA registrations share.
namespace adder::ops {

inline kernels::CudaStream current_stream() {
  return c10::cuda::getCurrentCUDAStream().stream();
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
