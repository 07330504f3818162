#pragma once

#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/cuda_stream.h"

// The CUDA kernels of the causal convolution. All pointers are the device's, cu_seqlens too; work is queued on the
// stream.
namespace adder::kernels::cuda {

template <typename T>
void causal_conv1d_forward(const CausalConv1dForward<T>& params, CudaStream stream);
template <typename T>
void causal_conv1d_backward(const CausalConv1dBackward<T>& params, CudaStream stream);
template <typename T>
int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<T>& inputs);

// Every option, any width and strides.
template <typename T>
void causal_conv1d_forward_generic(const CausalConv1dForward<T>& params, CudaStream stream);
template <typename T>
void causal_conv1d_backward_generic(const CausalConv1dBackward<T>& params, CudaStream stream);

// Widths 2 to 4 without mask, channels side by side and aligned to 16 bytes.
template <typename T>
bool causal_conv1d_is_fast(const CausalConv1dInputs<T>& inputs);
template <typename T>
void causal_conv1d_forward_fast(const CausalConv1dForward<T>& params, CudaStream stream);
template <typename T>
void causal_conv1d_backward_fast(const CausalConv1dBackward<T>& params, CudaStream stream);

// Widths 2 to 4 without mask, forward in time, steps side by side, (B, D, L) in memory, rows aligned to 16 bytes.
template <typename T>
bool causal_conv1d_takes_steps(const CausalConv1dInputs<T>& inputs);
// How rows are divided among groups of lanes.
struct ConvPieces {
  int64_t length, of_row;  // steps of a piece; pieces of a row
};
template <typename T>
ConvPieces causal_conv1d_pieces(const CausalConv1dInputs<T>& inputs);
template <typename T>
void causal_conv1d_forward_by_steps(const CausalConv1dForward<T>& params, CudaStream stream);
template <typename T>
void causal_conv1d_backward_by_steps(const CausalConv1dBackward<T>& params, CudaStream stream);

// Runs of at most `steps` steps that the fast kernels walk, none of them of two sequences; packed ones may be empty.
inline int64_t causal_conv1d_runs(const SequenceLayout& layout, int64_t steps) {
  return layout.cu_seqlens != nullptr ? layout.length / steps + layout.sequences
                                      : layout.sequences * ((layout.length + steps - 1) / steps);
}

// How the backward pass divides the sums over steps: each slab's sums lie in the workspace as (slabs, K + 1, D), the
// bias last, and are added in order.
struct ConvSlabs {
  int64_t length = 1, count = 0;  // steps of all sequences, or of one, in a slab; how many slabs
};
template <typename T>
ConvSlabs causal_conv1d_slabs(const CausalConv1dInputs<T>& inputs);
template <typename T>
void causal_conv1d_sum_slabs(const CausalConv1dBackward<T>& params, int64_t slabs, CudaStream stream);

}  // namespace adder::kernels::cuda
