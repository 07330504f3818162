#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <functional>
#include <string>

namespace adder::nn {

// What of a block is computed again in the backward pass instead of being kept: nothing; the mixer, of which the input
// is kept; or the norm too.
enum class Recompute { kNone, kMixer, kBlock };

// "none", "mixer" or "block".
Recompute parse_recompute(const std::string& name);

// body(inputs), of which only the inputs are kept: the backward pass runs it once more. `parameters` are what else the
// body reads that gets a gradient. The body does the same each time it is run; inputs may be undefined. No second
// derivative.
torch::autograd::variable_list recomputed(
    const std::function<torch::autograd::variable_list(const torch::autograd::variable_list&)>& body,
    const torch::autograd::variable_list& inputs, const torch::autograd::variable_list& parameters);

}  // namespace adder::nn
