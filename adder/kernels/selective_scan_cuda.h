#pragma once

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/selective_scan.h"

// The CUDA kernels of the selective scan. All pointers are the device's, cu_seqlens too; work is queued on the stream.
namespace adder::kernels::cuda {

// How a scan is done. The choice depends on shape and options, backward also on the current device's shared memory.
enum class ScanAlgorithm {
  kGeneric,  // every option
  kFast,     // 8 or 16 real states, Euler, B and C per step, no double
  kShort,    // the same of a few steps, not packed
};
template <typename T>
ScanAlgorithm choose_scan(const SelectiveScanInputs<T>& inputs, bool backward);

template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params, CudaStream stream);
template <typename T>
int64_t selective_scan_forward_workspace_bytes(const SelectiveScanForward<T>& params);
template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& inputs);

// The fast scan's parts of a sequence: from step k * steps on, the last one shorter. begins (count, S, D, N): the state
// before each part (in the backward pass the gradient behind it) but that at the end where the pass begins.
struct ScanParts {
  int64_t count = 1, steps = 1;
  const float* begins = nullptr;
};
// By the shape alone: several parts where sequences are few, and long enough.
template <typename T>
ScanParts scan_parts(const SelectiveScanInputs<T>& inputs, bool backward);
template <typename T>
int64_t scan_parts_workspace_bytes(const SelectiveScanInputs<T>& inputs, bool backward);
template <typename T>
void find_part_states(const SelectiveScanForward<T>& params, const ScanParts& parts, void* workspace,
                      CudaStream stream);
template <typename T>
void find_part_gradients(const SelectiveScanBackward<T>& params, const ScanParts& parts, void* workspace,
                         CudaStream stream);

// Whether the forward pass reads these inputs, whose steps lie side by side, (B, D, L) in memory, as fast as those
// whose channels do. All kernels take any strides, but move single values then.
template <typename T>
bool selective_scan_takes_steps(const SelectiveScanInputs<T>& inputs);

template <typename T>
void selective_scan_forward_fast(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_forward_short(const SelectiveScanForward<T>& params, CudaStream stream);
template <typename T>
void selective_scan_forward_generic(const SelectiveScanForward<T>& params, CudaStream stream);
// Whether the current device has the shared memory for it (8.6 and 8.9 have too little for float32).
template <typename T>
bool selective_scan_backward_fast_fits(const SelectiveScanInputs<T>& inputs);
template <typename T>
void selective_scan_backward_fast(const SelectiveScanBackward<T>& params, CudaStream stream);
template <typename T>
int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
void selective_scan_backward_short(const SelectiveScanBackward<T>& params, CudaStream stream);
template <typename T>
int64_t selective_scan_backward_short_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
int64_t selective_scan_backward_generic_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
void selective_scan_backward_generic(const SelectiveScanBackward<T>& params, CudaStream stream);

}  // namespace adder::kernels::cuda
