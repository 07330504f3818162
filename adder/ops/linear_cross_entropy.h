#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace adder::ops {

// Cross entropy of softmax(x weight^T) without ever holding all logits; formula, gradient and shapes:
// docs/ops/linear_cross_entropy.md.
//  - x (M, D) float32, float64, bfloat16 or float16
//  - weight (V, D) in x's type, or float32 where x is of a half type
//  - target (M) int64, in [0, vocab) or ignore_index
//  - vocab: the first rows of weight that are real, -1 for all
//
// Returns the mean loss over the rows not ignored (0 where there are none), the loss of each row, both float32
// (float64), in nats, and each row's most probable token (M) int64; only the first has a gradient. Raises ValueError on
// bad arguments.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy(const at::Tensor& x, const at::Tensor& weight,
                                                                    const at::Tensor& target,
                                                                    int64_t ignore_index = -100, int64_t vocab = -1);

// The same from plain torch operations, differentiable any number of times; holds the logits of all rows.
std::tuple<at::Tensor, at::Tensor, at::Tensor> linear_cross_entropy_composite(const at::Tensor& x,
                                                                              const at::Tensor& weight,
                                                                              const at::Tensor& target,
                                                                              int64_t ignore_index = -100,
                                                                              int64_t vocab = -1);

}  // namespace adder::ops
