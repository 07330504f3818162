#pragma once

#include <functional>

#include "adder/infer/sampling.h"
#include "adder/models/mamba_lm.h"

// What decoding on a GPU does with kernels of its own.
namespace adder::infer {

// A step of the whole model as one kernel: from tokens (S) int64 to logits (S, V) float32, the state changed in place;
// all these tensors keep their places. Empty where the model, the number of rows or the device is not what the kernel
// is made for. The weights are read in each step, but A is that of now.
std::function<void()> fused_step(const models::MambaLM& model, const torch::Tensor& tokens, const torch::Tensor& logits,
                                 const models::LMState& state);

// A token for each row of logits (S, V) float32, -1 where a logit is NaN or +inf, -2 where none is finite.
// places (S) float64 in [0, 1); seen (S, V) uint8, undefined without a repetition penalty: 1 where a token has been.
void sample_on_device(const torch::Tensor& logits, const torch::Tensor& places, const torch::Tensor& seen,
                      const SamplingOptions& options, const torch::Tensor& tokens);

}  // namespace adder::infer
