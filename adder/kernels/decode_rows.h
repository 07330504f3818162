#pragma once

#include <cstdint>

#include "adder/kernels/cuda_stream.h"
#include "adder/kernels/dtype.h"

// What lies between the products of a Mamba block, for one token of each of many sequences: the states are changed in
// place. W is float or bfloat16; everything is contiguous but for the row strides that are given.
namespace adder::kernels {

// Convolution and SiLU.
template <typename W>
struct ConvRows {
  int64_t rows, channels, width;
  const W* x;  // (rows, channels)
  int64_t x_stride;
  const float *weight, *bias;  // (channels, width); (channels) or null
  float* window;               // (rows, width - 1, channels), oldest first, in and out
  W* u;                        // (rows, channels)
};

// Softplus, the recurrence (real A, Bbar = delta B), D and the gate.
template <typename W>
struct StateRows {
  int64_t rows, channels, states;
  const W *u, *delta;  // (rows, channels)
  const W *z, *B, *C;  // (rows, channels), (rows, states)
  int64_t z_stride, B_stride, C_stride;
  const float *delta_bias, *A, *D;  // (channels), (channels, states), (channels)
  float* state;                     // (rows, channels, states), in and out, aligned to 16 bytes
  W* y;                             // (rows, channels)
};

namespace cuda {

inline bool state_rows_fit(int64_t states) {
  return states == 8 || states == 16 || states == 32 || states == 64;
}
template <typename W>
void conv_rows(const ConvRows<W>& p, CudaStream stream);
template <typename W>
void state_rows(const StateRows<W>& p, CudaStream stream);

}  // namespace cuda
}  // namespace adder::kernels
