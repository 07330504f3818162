#include "adder/nn/parameters.h"

#include <torch/torch.h>

namespace adder::nn {

torch::Tensor uniform_fan_in(at::IntArrayRef sizes, int64_t fan_in) {
  const double bound = fan_in > 0 ? 1 / std::sqrt(static_cast<double>(fan_in)) : 0.0;
  return torch::empty(sizes).uniform_(-bound, bound);
}

}  // namespace adder::nn
