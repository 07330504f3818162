#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

// Where the steps of a tensor (B, L, ...) lie side by side in memory, (B, ..., L), as other packages have them, instead
// of its channels. Results lie as what they belong to: y and du as u, dB as B.
namespace adder::ops {

bool steps_side_by_side(const at::Tensor& t);
// A new tensor that lies as t does in that respect.
at::Tensor empty_as(const at::Tensor& t);

// A result whose channels lie side by side, laid as `like`. Kernels::steps_last(t): t (B, L, ...) as (B, ..., L),
// contiguous.
template <typename Kernels>
at::Tensor laid_as(const at::Tensor& result, const at::Tensor& like) {
  return steps_side_by_side(like) ? Kernels::steps_last(result).movedim(-1, 1) : result;
}

// On the current GPU, at the rate of a plain copy: t as (B, ..., L), contiguous.
at::Tensor steps_last_on_cuda(const at::Tensor& t);
// t with channels side by side: itself where its steps do not lie so.
at::Tensor rows_on_cuda(const at::Tensor& t);
std::optional<at::Tensor> rows_on_cuda(const std::optional<at::Tensor>& t);

}  // namespace adder::ops
