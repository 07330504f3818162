#pragma once

#include <cstdint>

#include "adder/kernels/dtype.h"
#include "adder/kernels/selective_scan.h"
#include "adder/kernels/strided.h"

// The causal depthwise convolution before the scan, channel-last:
//
//   y_t = act(bias + sum_k weight_k x_(t - K + 1 + k))      k = 0 .. K - 1
//
// for each sequence and channel. Steps before the first come from the window: the K - 1 rows that precede the sequence,
// oldest first. A masked step is left out as if the sequence did not have it. Letters: B batch, L length, D channels, K
// width, S sequences (= B, or the packed segments of one row). R below is the accumulator type: double for T = double,
// else float.
namespace adder::kernels {

enum class ConvActivation { kNone, kSilu };

template <typename T>
struct CausalConv1dInputs {
  using R = Accumulator<T>;
  SequenceLayout layout;  // reverse: the initial window precedes the last step of each sequence
  int64_t channels = 0, width = 1;
  ConvActivation activation = ConvActivation::kNone;

  View3<const T> x;                   // (B, L, D)
  View2<const R> weight;              // (D, K)
  View1<const R> bias;                // (D) or null
  const R* initial_window = nullptr;  // (S, K - 1, D) contiguous, or null: zeros

  int64_t threads = 0;  // 0: OpenMP's own number. The bits of the results do not depend on it
};

template <typename T>
struct CausalConv1dForward : CausalConv1dInputs<T> {
  using R = Accumulator<T>;
  View3<T> y;                 // (B, L, D); masked steps 0
  R* final_window = nullptr;  // (S, K - 1, D) contiguous: the last K - 1 rows of [initial_window; x]
};

template <typename T>
struct CausalConv1dBackward : CausalConv1dInputs<T> {
  using R = Accumulator<T>;
  View3<const T> dy;                 // (B, L, D); masked steps are not read
  const R* dfinal_window = nullptr;  // (S, K - 1, D) contiguous, or null: zeros
  View3<T> dx;                       // (B, L, D); masked steps 0
  R* dweight = nullptr;              // (D, K) contiguous
  R* dbias = nullptr;                // (D) or null
  R* dinitial_window = nullptr;      // (S, K - 1, D) contiguous, or null
  void* workspace = nullptr;         // causal_conv1d_backward_workspace_bytes(), aligned to 64 bytes
};

namespace cpu {
template <typename T>
int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<T>& inputs);
template <typename T>
void causal_conv1d_forward(const CausalConv1dForward<T>& params);
template <typename T>
void causal_conv1d_backward(const CausalConv1dBackward<T>& params);
}  // namespace cpu

}  // namespace adder::kernels
