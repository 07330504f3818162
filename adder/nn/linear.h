#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "adder/nn/sequence.h"

namespace adder::nn {

// y = x W^T + b in x's type; a weight of another type is cast. x (..., I); with sequence.independent (B, L, I), or
// (S, I): a row of each sequence.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {},
                  const SequenceInfo& sequence = {});

// x itself, to be used from here on, and x W^T: what comes back to both as gradients is added within the product.
std::pair<at::Tensor, at::Tensor> linear_beside(const at::Tensor& x, const at::Tensor& weight,
                                                const SequenceInfo& sequence);

// The two halves of linear()'s result.
std::pair<at::Tensor, at::Tensor> linear_halves(const at::Tensor& x, const at::Tensor& weight,
                                                const at::Tensor& bias = {}, const SequenceInfo& sequence = {});

}  // namespace adder::nn
