#pragma once

#include <torch/nn/module.h>

#include <string>
#include <utility>

#include "adder/nn/sequence.h"

namespace adder::nn {

// A module that only holds parameters, so that they get names such as "in_proj.weight".
class ParametersImpl : public torch::nn::Module {
 public:
  torch::Tensor add(const std::string& name, const torch::Tensor& value) { return register_parameter(name, value); }
};

// U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear and convolution weights (Kaiming uniform with a =
// sqrt(5)).
torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in);

// y = x W^T + b in x's type; a weight of another type is cast. x (..., I); with sequence.independent (B, L, I), or
// (S, I): a row of each sequence.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias = {},
                     const SequenceInfo& sequence = {});

// The two halves of linear()'s result.
std::pair<torch::Tensor, torch::Tensor> linear_halves(const torch::Tensor& x, const torch::Tensor& weight,
                                                      const torch::Tensor& bias = {},
                                                      const SequenceInfo& sequence = {});

}  // namespace adder::nn
