#pragma once

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/selective_scan.h"

// The CUDA kernels of the selective scan. All pointers are the device's, cu_seqlens too; work is queued on the stream.
namespace adder::kernels::cuda {

// How a scan is done. The choice depends on shapes, options and strides alone.
enum class ScanAlgorithm {
  kGeneric,  // every option
  kFast,     // 8 or 16 real states, Euler, B and C per step, no double
};
template <typename T>
ScanAlgorithm choose_scan(const SelectiveScanInputs<T>& inputs);

template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params, CudaStream stream);
template <typename T>
int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>& params);
template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& inputs);

template <typename T>
void selective_scan_forward_fast(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_forward_generic(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_backward_fast(const SelectiveScanBackward<T>& params, CudaStream stream);
template <typename T>
int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
int64_t selective_scan_backward_generic_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
void selective_scan_backward_generic(const SelectiveScanBackward<T>& params, CudaStream stream);

}  // namespace adder::kernels::cuda
