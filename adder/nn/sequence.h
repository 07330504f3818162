#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace adder::nn {

// Which steps of a (B, L) batch belong together.
struct SequenceInfo {
  std::optional<at::Tensor> mask = {};        // (B, L) bool: false steps are skipped
  std::optional<at::Tensor> cu_seqlens = {};  // (S + 1) int64 on the CPU, B = 1: packed sequences
  bool reverse = false;                       // time runs from the last step to the first
  // For decoding, without gradient on the CPU: the bits of a sequence's results depend on no other sequence, where the
  // batch is packed or L = 1. Products of large batches are slower.
  bool independent = false;
};

}  // namespace adder::nn
