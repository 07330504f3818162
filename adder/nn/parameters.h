#pragma once

#include <torch/nn/module.h>

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

}  // namespace adder::nn
