#pragma once

#include <torch/nn/module.h>

#include <string>
#include <utility>
#include <vector>

#include "adder/train/options.h"

namespace adder::train {

// Weight decay pulls at matrices only: not at A_log, A_imag, D, constant B and C, biases, norms and the embedding.
bool is_decayed(const std::string& parameter_name);

// AdamW (Loshchilov and Hutter, 2019) over ATen's fused kernel. Moments are float32 and start at zero.
class AdamW {
 public:
  // Of all parameters that the model has now.
  AdamW(const torch::nn::Module& model, const OptimizerOptions& options);

  void zero_grad();  // before each backward pass
  // The norm of the whole gradient, in double.
  double gradient_norm() const;
  // The same squared, as a float64 scalar on the parameters' device, for which nothing waits.
  torch::Tensor squared_norm() const;
  // One update; `norm` is gradient_norm(), by which the gradient is clipped.
  void step(double lr, double norm);
  // The same as work for the device alone: lr () float32, norm () float64; where stopped () float32 is 1, nothing
  // changes.
  void step_on_device(const torch::Tensor& lr, const torch::Tensor& norm, const torch::Tensor& stopped);
  // Parameters have been written where LibTorch does not see it: what is derived from them is stale.
  void mark_changed();

  // Moments and step counts by name, for checkpoints.
  std::vector<std::pair<std::string, torch::Tensor>> named_state() const;
  // Copies what named_state() gave; a missing tensor or a wrong shape is an error.
  void load_state(const std::vector<std::pair<std::string, torch::Tensor>>& state);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<torch::Tensor> parameters, first, second, steps;
    double weight_decay;
  };
  // The parameters of a group that have a gradient.
  struct Update {
    std::vector<torch::Tensor> parameters, grads, first, second, steps;
    explicit Update(const Group& group);
  };
  OptimizerOptions options_;
  Group groups_[2];
};

}  // namespace adder::train
