#pragma once

#include <algorithm>
#include <cstdint>

#include "adder/kernels/dtype.h"

// The residual add and the normalisation after it, row by row:
//
//   r = x + residual                       (kept in the accumulator type)
//   y = (r - mean) rstd weight + bias      rstd = 1 / sqrt(mean((r - mean)^2) + eps); the RMS norm has mean = 0
//
// T is x's type, Out is y's; R is the accumulator type: double for T = double, else float. All arrays are contiguous.
namespace adder::kernels {

enum class NormKind { kRms, kLayer };

template <typename T, typename Out>
struct AddNormForward {
  using R = Accumulator<T>;
  int64_t rows = 0, width = 0;  // width: D, from 1
  NormKind kind = NormKind::kRms;
  double eps = 1e-5;
  const T* x = nullptr;         // (rows, D)
  const R* residual = nullptr;  // (rows, D) or null: zeros
  const R* weight = nullptr;    // (D)
  const R* bias = nullptr;      // (D) or null
  Out* y = nullptr;             // (rows, D)
  R* residual_out = nullptr;    // (rows, D)
  R* rstd = nullptr;            // (rows)
  R* mean = nullptr;            // (rows); null for kRms
  int64_t threads = 0;          // 0: OpenMP's own number. The bits of the results do not depend on it
};

template <typename T, typename Out>
struct AddNormBackward {
  using R = Accumulator<T>;
  int64_t rows = 0, width = 0;
  NormKind kind = NormKind::kRms;
  const Out* dy = nullptr;           // (rows, D)
  const R* dresidual_out = nullptr;  // (rows, D) or null: zeros
  const R* residual_out = nullptr;   // (rows, D), of the forward pass, as are rstd and mean
  const R* rstd = nullptr;           // (rows)
  const R* mean = nullptr;           // (rows); null for kRms
  const R* weight = nullptr;         // (D)
  T* dx = nullptr;                   // (rows, D) or null
  R* dresidual = nullptr;            // (rows, D) or null
  R* dweight = nullptr;              // (D)
  R* dbias = nullptr;                // (D) or null
  void* workspace = nullptr;         // add_norm_backward_workspace_bytes()
  int64_t threads = 0;
};

// How rows are dealt out, by the shape alone: the backward pass sums dweight and dbias block by block.
struct NormBlocks {
  int64_t rows, count;
  explicit NormBlocks(int64_t all_rows)
      : rows(std::max<int64_t>(16, (all_rows + 63) / 64)), count((all_rows + rows - 1) / rows) {}
};

namespace cpu {
template <typename T, typename Out>
int64_t add_norm_backward_workspace_bytes(const AddNormBackward<T, Out>& params);
// (T, Out): any pair of float, bfloat16 and float16, or double twice.
template <typename T, typename Out>
void add_norm_forward(const AddNormForward<T, Out>& params);
template <typename T, typename Out>
void add_norm_backward(const AddNormBackward<T, Out>& params);
}  // namespace cpu

}  // namespace adder::kernels
