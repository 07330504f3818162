#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

#include "adder/kernels/selective_scan.h"

// The inner operators of the selective scan, and what their registrations share.
namespace adder::ops {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments that all three operators take, in the order of their schemas.
#define ADDER_SELECTIVE_SCAN_ARGUMENTS                                                                         \
  const at::Tensor &u, const at::Tensor &delta, const at::Tensor &A, const at::Tensor &B, const at::Tensor &C, \
      const OptionalTensor &D, const OptionalTensor &z, const OptionalTensor &delta_bias, bool delta_softplus, \
      c10::string_view discretization, const OptionalTensor &initial_state, const OptionalTensor &mask,        \
      const OptionalTensor &cu_seqlens, bool reverse
#define ADDER_SELECTIVE_SCAN_NAMES \
  u, delta, A, B, C, D, z, delta_bias, delta_softplus, discretization, initial_state, mask, cu_seqlens, reverse
// Those of them that can have a gradient.
#define ADDER_SELECTIVE_SCAN_TENSORS u, delta, A, B, C, D, z, delta_bias, initial_state

// y (B, L, D), final_state (S, D, N), border_states (opaque, for the backward pass; empty unless `save`).
using ScanForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
ScanForwardResult selective_scan_fwd(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save);

// du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial_state; those of absent arguments are empty tensors.
using ScanBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                      at::Tensor, at::Tensor, at::Tensor>;
ScanBackwardResult selective_scan_bwd(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                      const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS);

// Everything that can be said of the arguments without reading their values; returns S.
c10::SymInt check_selective_scan(ADDER_SELECTIVE_SCAN_ARGUMENTS);
// The same with those of the backward pass; the number of border_states is the kernel's to check.
c10::SymInt check_selective_scan_bwd(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                     const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS);

kernels::Discretization discretization_of(c10::string_view name);

}  // namespace adder::ops
