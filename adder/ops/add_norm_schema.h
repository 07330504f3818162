#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/string_view.h>

#include <optional>
#include <tuple>

#include "adder/kernels/add_norm.h"

// The inner operators of add_norm, and what their registrations share.
namespace adder::ops {

using OptionalTensor = std::optional<at::Tensor>;

#define ADDER_ADD_NORM_ARGUMENTS                                                                             \
  const at::Tensor &x, const OptionalTensor &residual, const at::Tensor &weight, const OptionalTensor &bias, \
      c10::string_view kind, double eps, std::optional<at::ScalarType> out_dtype
#define ADDER_ADD_NORM_NAMES x, residual, weight, bias, kind, eps, out_dtype

// y, residual_out (..., D), rstd and mean (rows); mean is empty for the RMS norm.
using AddNormForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
AddNormForwardResult add_norm_fwd(ADDER_ADD_NORM_ARGUMENTS);

#define ADDER_ADD_NORM_BACKWARD_ARGUMENTS                                                                              \
  const at::Tensor &dy, const OptionalTensor &dresidual_out, const at::Tensor &residual_out, const at::Tensor &weight, \
      const at::Tensor &rstd, const at::Tensor &mean, c10::string_view kind, at::ScalarType x_dtype,                   \
      bool need_dresidual, bool need_dbias
#define ADDER_ADD_NORM_BACKWARD_NAMES \
  dy, dresidual_out, residual_out, weight, rstd, mean, kind, x_dtype, need_dresidual, need_dbias

// dx in x_dtype; dresidual, empty where it is not needed or has dx's type and so its values; dweight and dbias in the
// type of residual_out, dbias empty where not needed.
using AddNormBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
AddNormBackwardResult add_norm_bwd(ADDER_ADD_NORM_BACKWARD_ARGUMENTS);

void check_add_norm(ADDER_ADD_NORM_ARGUMENTS);
void check_add_norm_bwd(ADDER_ADD_NORM_BACKWARD_ARGUMENTS);

kernels::NormKind norm_kind_of(c10::string_view name);

}  // namespace adder::ops
