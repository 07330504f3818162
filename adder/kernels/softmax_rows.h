#pragma once

#include <cstdint>

#include "adder/kernels/dtype.h"

// Cross entropy of rows of logits, with its gradient written over the logits.
namespace adder::kernels {

template <typename T>
struct SoftmaxRows {
  using R = Accumulator<T>;
  int64_t rows = 0, vocab = 0;  // vocab: V, from 1
  T* logits = nullptr;  // (rows, V) contiguous; with write_gradient: (softmax - onehot(target)) * scale afterwards
  const int64_t* targets = nullptr;  // (rows), in [0, V) or ignore_index
  int64_t ignore_index = -100;       // such a row has loss 0 and gradient 0
  bool write_gradient = false;
  R scale = 1;
  const R* scale_there = nullptr;  // CUDA: where the scale lies on the device, instead of `scale`
  R* losses = nullptr;             // (rows): logsumexp(logits) - logits[target]
  int64_t* predictions =
      nullptr;          // (rows): place of the largest logit, the first of equals; of the first NaN where there is one
  int64_t threads = 0;  // 0: OpenMP's own number. The bits of the results do not depend on it
};

namespace cpu {
// A row with a NaN or +inf has loss and gradient NaN.
template <typename T>
void softmax_rows(const SoftmaxRows<T>& params);
}  // namespace cpu

}  // namespace adder::kernels
