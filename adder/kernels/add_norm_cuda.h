#pragma once

#include "adder/kernels/add_norm.h"
#include "adder/kernels/cuda_stream.h"

// The CUDA kernels of the residual add and norm. All pointers are the device's; work is queued on the stream.
namespace adder::kernels::cuda {

template <typename T, typename Out>
void add_norm_forward(const AddNormForward<T, Out>& params, CudaStream stream);
template <typename T, typename Out>
void add_norm_backward(const AddNormBackward<T, Out>& params, CudaStream stream);
template <typename T, typename Out>
int64_t add_norm_backward_workspace_bytes(const AddNormBackward<T, Out>& params);

}  // namespace adder::kernels::cuda
