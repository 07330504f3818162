#pragma once

#include <cstdint>

#include "adder/kernels/dtype.h"
#include "adder/kernels/strided.h"

// The selective scan (arXiv 2312.00752, section 3.2 and Algorithm 2), channel-last:
//
//   delta_t = softplus(delta_t + delta_bias)          (both optional)
//   h_t = Abar_t h_(t-1) + Bbar_t u_t                 Abar = exp(delta A)
//   y_t = (C_t h_t + D u_t) silu(z_t)                 (D and z optional; complex: 2 Re(C_t h_t))
//
// for each sequence and channel, with N states. Letters: B batch, L length, D channels, N state, G groups, S sequences
// (= B, or the packed segments of one row). R below is the accumulator type: double for T = double, else float. Complex
// numbers are pairs of R.
namespace adder::kernels {

enum class Discretization {
  kEuler,  // Bbar = delta B, as in the published models
  kZoh,    // Bbar = (delta A)^-1 (exp(delta A) - 1) delta B, equation 4; delta B where A = 0
};

// Which sequences there are: row b of the batch, or, with cu_seqlens, the segments [cu_seqlens[s], cu_seqlens[s + 1])
// of the only row.
struct SequenceLayout {
  int64_t batch = 0, length = 0;
  int64_t sequences = 0;                // S
  const int64_t* cu_seqlens = nullptr;  // (S + 1), host
  View2<const bool> mask;  // (B, L); data may be null. False: the step is skipped, its outputs and gradients are 0
  bool reverse = false;    // time runs from the last step to the first
};

template <typename T>
struct SelectiveScanInputs {
  using R = Accumulator<T>;
  SequenceLayout layout;
  int64_t channels = 0, state = 0, groups = 1;
  Discretization discretization = Discretization::kEuler;
  bool complex = false;  // A, states (and constant B, C) complex; per-step B, C hold N pairs of T
  bool delta_softplus = false;
  bool constant_B = false, constant_C = false;  // one B or C for all steps, in B_const or C_const

  View3<const T> u, delta;           // (B, L, D)
  View3<const T> z;                  // (B, L, D) or null
  View2<const R> A;                  // (D, N); strides count complex elements where complex
  View4<const T> B_step, C_step;     // (B, L, G, N), complex (B, L, G, 2 N)
  View2<const R> B_const, C_const;   // (D, N)
  View1<const R> D, delta_bias;      // (D) or null
  const R* initial_state = nullptr;  // (S, D, N) contiguous, or null: zeros

  int64_t threads = 0;  // 0: OpenMP's own number. The bits of the results do not depend on it
};

template <typename T>
struct SelectiveScanForward : SelectiveScanInputs<T> {
  using R = Accumulator<T>;
  View3<T> y;                  // (B, L, D)
  R* final_state = nullptr;    // (S, D, N) contiguous
  R* border_states = nullptr;  // null, or selective_scan_border_size() values for the backward pass, opaque: the state
                               // before each chunk; a kernel whose backward pass needs none of them writes none
  void* workspace = nullptr;   // CUDA: selective_scan_forward_workspace_bytes()
};

template <typename T>
struct SelectiveScanBackward : SelectiveScanInputs<T> {
  using R = Accumulator<T>;
  const R* border_states = nullptr;  // of the forward pass
  View3<const T> dy;                 // (B, L, D)
  const R* dfinal_state = nullptr;   // (S, D, N) contiguous, or null: zeros
  View3<T> du, ddelta, dz;           // (B, L, D); dz null without z
  View4<T> dB_step, dC_step;         // (B, L, G, N[*2])
  R* dA = nullptr;                   // (D, N) contiguous
  R* dB_const = nullptr;             // (D, N) contiguous
  R* dC_const = nullptr;             // (D, N) contiguous
  R* dD = nullptr;                   // (D) or null
  R* ddelta_bias = nullptr;          // (D) or null
  R* dinitial_state = nullptr;       // (S, D, N) or null
  void* workspace = nullptr;         // selective_scan_backward_workspace_bytes()
};

// Steps between two states that are saved: on the CPU, and on the GPU, for whose number there is room on both.
inline constexpr int64_t kScanChunk = 32, kCudaScanChunk = 16;
// Channels that lie side by side in border_states and in the CPU's tiles; a multiple of every vector width.
inline constexpr int64_t kScanUnit = 16;

// The number of values of R in border_states: about L D N / 16 for each row. It depends on shapes alone, never on the
// values of cu_seqlens, so that it can be told before these are known; Int may be a symbol's type.
template <typename Int>
Int selective_scan_border_size(const Int& sequences, const Int& length, bool packed, const Int& channels,
                               const Int& state, const Int& groups, bool complex) {
  const Int chunks =
      packed ? length / kCudaScanChunk + sequences : sequences * ((length + (kCudaScanChunk - 1)) / kCudaScanChunk);
  const Int units = groups * ((channels / groups + (kScanUnit - 1)) / kScanUnit);
  return chunks * units * state * ((complex ? 2 : 1) * kScanUnit);
}

namespace cpu {
template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& inputs);
template <typename T>
void selective_scan_forward(const SelectiveScanForward<T>& params);
template <typename T>
void selective_scan_backward(const SelectiveScanBackward<T>& params);
}  // namespace cpu

}  // namespace adder::kernels
