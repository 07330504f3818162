#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymIntArrayRef.h>

#include <initializer_list>
#include <optional>

// Argument checks that operators share. All raise c10::ValueError (ValueError in Python) with a text of the form
// "selective_scan: delta must have shape (B, L, D) = (2, 128, 64), got (2, 127, 64)". Sizes are compared as SymInt, so
// that one compiled graph serves every length.
namespace adder::ops {

// `letters` as in "(B, L, D)"; a size of -1 in `expected` allows any.
void check_shape(const char* op, const char* name, const at::Tensor& tensor, const char* letters,
                 std::initializer_list<c10::SymInt> expected);
void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType expected);
void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like,
                  const char* like_name);
// One of float32, float64, bfloat16, float16.
void check_floating(const char* op, const char* name, const at::Tensor& tensor);

// What a kernel accumulates in for inputs of this type: float64 for float64, else float32.
at::ScalarType accumulator_type(at::ScalarType type);

// mask: bool (B, L). cu_seqlens: int64 (S + 1) on the CPU, with B = 1. Returns S, or B without cu_seqlens.
c10::SymInt check_sequences(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& mask,
                            const std::optional<at::Tensor>& cu_seqlens);
// The values: start at 0, never fall, end at `length`. Not for Meta tensors.
void check_cu_seqlens_values(const char* op, const at::Tensor& cu_seqlens, int64_t length);

bool any_requires_grad(std::initializer_list<std::optional<at::Tensor>> tensors);
// Forward-mode derivatives, which would otherwise get lost without a word.
void check_no_forward_gradient(const char* op, std::initializer_list<std::optional<at::Tensor>> tensors);

inline bool present(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() && tensor->defined();
}

}  // namespace adder::ops
