#pragma once

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/softmax_rows.h"

// The CUDA kernels of the cross entropy. All pointers are the device's; work is queued on the stream.
namespace adder::kernels::cuda {

// A row with a NaN or +inf, or with a target outside [0, V) that is not ignore_index, has loss and gradient NaN.
template <typename T>
void softmax_rows(const SoftmaxRows<T>& params, CudaStream stream);

// scale = 1 / (number of targets that are not ignore_index, at least 1)
template <typename R>
void target_scale(const int64_t* targets, int64_t rows, int64_t ignore_index, R* scale, CudaStream stream);

// loss = scale * (sum of the row losses, added in double and in an order that the number of rows fixes)
template <typename R>
void mean_loss(const R* losses, int64_t rows, const R* scale, R* loss, CudaStream stream);

}  // namespace adder::kernels::cuda
