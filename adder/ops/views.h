#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "adder/kernels/selective_scan.h"

// From tensors to the kernels' typed views.
namespace adder::ops {

// Calls f.operator()<T>() with the kernel type T of a floating point dtype.
template <typename F>
void dispatch_floating(at::ScalarType type, const F& f) {
  switch (type) {
    case at::kFloat:
      return f.template operator()<float>();
    case at::kDouble:
      return f.template operator()<double>();
    case at::kBFloat16:
      return f.template operator()<kernels::bfloat16>();
    case at::kHalf:
      return f.template operator()<kernels::float16>();
    default:
      TORCH_CHECK_VALUE(false, "adder has no kernel for dtype ", type);
  }
}

// The tensor's memory as numbers of T (complex ones as pairs). T is const for what the kernel reads.
template <typename T>
T* numbers(const at::Tensor& tensor) {
  if constexpr (std::is_const_v<T>)
    return static_cast<T*>(tensor.const_data_ptr());
  else
    return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
kernels::View1<T> view1(const at::Tensor& t) {
  return {numbers<T>(t), t.stride(0)};
}
template <typename T>
kernels::View2<T> view2(const at::Tensor& t) {
  return {numbers<T>(t), t.stride(0), t.stride(1)};
}
template <typename T>
kernels::View3<T> view3(const at::Tensor& t) {
  return {numbers<T>(t), t.stride(0), t.stride(1), t.stride(2)};
}
template <typename T>
kernels::View4<T> view4(const at::Tensor& t) {
  return {numbers<T>(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// `offsets`: the contiguous cu_seqlens on the input's device, which the layout points into; undefined where there are
// none.
inline kernels::SequenceLayout sequence_layout(const at::Tensor& input, const std::optional<at::Tensor>& mask,
                                               const at::Tensor& offsets, bool reverse) {
  kernels::SequenceLayout layout;
  layout.batch = layout.sequences = input.size(0);
  layout.length = input.size(1);
  layout.reverse = reverse;
  if (mask.has_value() && mask->defined()) layout.mask = view2<const bool>(*mask);
  if (offsets.defined()) {
    layout.sequences = offsets.size(0) - 1;
    layout.cu_seqlens = offsets.const_data_ptr<int64_t>();
  }
  return layout;
}

}  // namespace adder::ops
