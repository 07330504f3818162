#pragma once

#include <cstdint>

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/dtype.h"
#include "adder/kernels/sample_tokens.h"

// One token of each of a few sequences through a whole language model, as one kernel.
namespace adder::kernels {

// The weights and the state of one block; W is float or bfloat16. All contiguous, matrices aligned to 16 bytes.
template <typename W>
struct DecodeLayer {
  const float* norm_weight;              // (d_model)
  const W* in_weight;                    // (2 d_inner, d_model)
  const float *conv_weight, *conv_bias;  // (d_inner, width); (d_inner) or null
  const W* x_weight;                     // (rank + 2 states, d_inner)
  const W* dt_weight;                    // (d_inner, rank)
  const float *dt_bias, *A, *D;          // (d_inner), (d_inner, states), (d_inner)
  const W* out_weight;                   // (d_model, d_inner)
  float* window;                         // (rows, width - 1, d_inner), oldest first, in and out
  float* state;                          // (rows, d_inner, states), in and out
};

struct DecodeShape {
  int rows, layers, d_model, d_inner, rank, states, width, vocab;
};

template <typename W>
struct DecodeStep : DecodeShape {
  const DecodeLayer<W>* layer;  // (layers) in device memory
  const W* embedding;           // (vocab, d_model)
  const float* norm_weight;     // (d_model)
  const W* head;                // (vocab, d_model)
  float eps;
  int64_t* tokens;     // (rows), in; out where `choose`
  float* logits;       // (rows, vocab)
  bool choose;         // the first of each row's largest logits, or a reason as in SampleTokens, goes to tokens
  TokenCopies copies;  // of what was chosen
  void* workspace;     // decode_step_workspace_bytes(), zero before the first step and left to this kernel
};

constexpr int64_t kDecodeRows = 8;

namespace cuda {

// Whether the current device can run a step of this shape; if not, it goes through the layers one by one.
template <typename W>
bool decode_step_fits(const DecodeShape& shape);
int64_t decode_step_workspace_bytes(const DecodeShape& shape);

// RMSNorm, SiLU, softplus, real A, Bbar = delta B. Products sum in float32; with 16-bit weights their inputs are
// rounded to the weights' type. The same bits each time; with another number of rows sums may have another order.
template <typename W>
void decode_step(const DecodeStep<W>& p, CudaStream stream);

}  // namespace cuda
}  // namespace adder::kernels
