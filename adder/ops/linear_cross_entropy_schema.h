#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

// The inner operator of linear_cross_entropy, and what its registrations share.
namespace adder::ops {

#define ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS \
  const at::Tensor &x, const at::Tensor &weight, const at::Tensor &target, int64_t ignore_index, int64_t vocab
#define ADDER_LINEAR_CROSS_ENTROPY_NAMES x, weight, target, ignore_index, vocab

// loss (), row_losses (M), predictions (M), and with need_grad the gradients of the loss: dx (M, D) in x's type and
// dweight (V, D) in the losses' type; empty without.
using LinearCrossEntropyResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LinearCrossEntropyResult linear_cross_entropy_fwd(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS, bool need_grad);

// Everything that can be said of the arguments without reading their values.
void check_linear_cross_entropy(ADDER_LINEAR_CROSS_ENTROPY_ARGUMENTS);

}  // namespace adder::ops
