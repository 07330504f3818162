#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

// What the registrations of small_linear share.
namespace adder::ops {

using OptionalTensor = std::optional<at::Tensor>;

#define ADDER_SMALL_LINEAR_ARGUMENTS const at::Tensor &x, const at::Tensor &weight, const OptionalTensor &bias
#define ADDER_SMALL_LINEAR_NAMES x, weight, bias

void check_small_linear(ADDER_SMALL_LINEAR_ARGUMENTS);

}  // namespace adder::ops
