#pragma once

#include <torch/nn/module.h>

#include <optional>
#include <string>

namespace adder::nn {

// A module that only holds parameters, so that they get names such as "in_proj.weight".
class ParametersImpl : public torch::nn::Module {
 public:
  torch::Tensor add(const std::string& name, const torch::Tensor& value) { return register_parameter(name, value); }
};

// U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear and convolution weights (Kaiming uniform with a =
// sqrt(5)).
torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in);

// y = x W^T + b in x's type; a weight of another type is cast. Without gradient on the CPU, a row's result depends on
// nothing outside its own sequence where x is (S, I) or (S, 1, I), a step of S sequences, or (1, L, I) with the
// cu_seqlens (S + 1) of packed ones.
torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias = {},
                     const std::optional<torch::Tensor>& cu_seqlens = {});

}  // namespace adder::nn
