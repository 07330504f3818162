#pragma once

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/small_linear.h"

namespace adder::kernels::cuda {

// All pointers are the device's; work is queued on the stream. Types as for the CPU.
template <typename X, typename W>
void small_linear(const SmallLinear<X, W>& params, CudaStream stream);

}  // namespace adder::kernels::cuda
