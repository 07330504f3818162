#pragma once

#include <functional>

#include "adder/infer/sampling.h"
#include "adder/models/mamba_lm.h"

// What decoding on a GPU does with kernels of its own.
namespace adder::infer {

// What a step works on; the tensors keep their places.
struct StepTensors {
  torch::Tensor tokens;   // (S) int64
  torch::Tensor logits;   // (S, V) float32
  models::LMState state;  // changed in place
};

// Where chosen tokens go too, for the host to read. Undefined: nowhere.
struct CopiedTokens {
  torch::Tensor tokens;  // (slots, S) int64, pinned: those of a row in slot turns[row] modulo slots
  torch::Tensor turns;   // (S) int64, counted on
};

// A step of the whole model, from tokens to logits. Empty where the model, the number of rows or the device is not what
// the kernels are made for. The weights are read in each step, but A is that of now.
//  - one_kernel_step: all of it in one kernel, for a few rows. With `chosen` it goes on to the next token as
//    sample_on_device with temperature 0 does, which takes the place of the old one.
//  - many_rows_step: a few kernels a layer with bfloat16 weights on a GPU of compute capability 9.0; else the products
//    by cuBLAS, and what lies between them by kernels that change the states in place.
std::function<void()> one_kernel_step(const models::MambaLM& model, const StepTensors& tensors,
                                      const CopiedTokens* chosen = nullptr);
std::function<void()> many_rows_step(const models::MambaLM& model, const StepTensors& tensors);

// A token for each row of logits (S, V) float32, -1 where a logit is NaN or +inf, -2 where none is finite.
// places (S) float64 in [0, 1); seen (S, V) uint8, undefined without a repetition penalty: 1 where a token has been.
void sample_on_device(const torch::Tensor& logits, const torch::Tensor& places, const torch::Tensor& seen,
                      const SamplingOptions& options, const torch::Tensor& tokens, const CopiedTokens& copies = {});

}  // namespace adder::infer
