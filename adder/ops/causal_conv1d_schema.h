#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

#include "adder/kernels/causal_conv1d.h"

// The inner operators of the causal convolution, and what their registrations share.
namespace adder::ops {

// The arguments that both operators take, in the order of their schemas.
#define ADDER_CAUSAL_CONV1D_ARGUMENTS                                                                               \
  const at::Tensor &x, const at::Tensor &weight, const std::optional<at::Tensor>&bias, c10::string_view activation, \
      const std::optional<at::Tensor>&initial_window, const std::optional<at::Tensor>&mask,                         \
      const std::optional<at::Tensor>&cu_seqlens, bool reverse
#define ADDER_CAUSAL_CONV1D_NAMES x, weight, bias, activation, initial_window, mask, cu_seqlens, reverse

// y (B, L, D), final_window (S, K - 1, D).
using ConvForwardResult = std::tuple<at::Tensor, at::Tensor>;
ConvForwardResult causal_conv1d_fwd(ADDER_CAUSAL_CONV1D_ARGUMENTS);

// dx, dweight, dbias, dinitial_window; those of absent arguments are empty tensors.
using ConvBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
ConvBackwardResult causal_conv1d_bwd(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                     ADDER_CAUSAL_CONV1D_ARGUMENTS);

// Everything that can be said of the arguments without reading their values; returns S.
c10::SymInt check_causal_conv1d(ADDER_CAUSAL_CONV1D_ARGUMENTS);
c10::SymInt check_causal_conv1d_bwd(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                    ADDER_CAUSAL_CONV1D_ARGUMENTS);

kernels::ConvActivation conv_activation_of(c10::string_view name);

}  // namespace adder::ops
