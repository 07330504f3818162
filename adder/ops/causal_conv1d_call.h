#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "adder/ops/causal_conv1d_schema.h"
#include "adder/ops/checks.h"
#include "adder/ops/step_layout.h"
#include "adder/ops/views.h"

// From the operators' tensors to kernels and back, for any device.
namespace adder::ops {

// Owns what the views of a call point into. Kernels: the kernels of one device, as static functions.
template <typename T, typename Kernels>
struct ConvCall {
  using R = kernels::Accumulator<T>;
  kernels::CausalConv1dInputs<T> inputs;
  at::Tensor kept_window, kept_offsets;

  explicit ConvCall(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
    kernels::CausalConv1dInputs<T>& p = inputs;
    if (present(cu_seqlens)) kept_offsets = Kernels::offsets(cu_seqlens->contiguous(), x.device());
    p.layout = sequence_layout(x, mask, kept_offsets, reverse);
    p.channels = x.size(2);
    p.width = weight.size(1);
    p.activation = conv_activation_of(activation);
    p.threads = at::get_num_threads();
    p.x = view3<const T>(x);
    p.weight = view2<const R>(weight);
    if (present(bias)) p.bias = view1<const R>(*bias);
    if (present(initial_window)) {
      kept_window = initial_window->contiguous();
      p.initial_window = numbers<const R>(kept_window);
    }
  }
};

// `as_steps`: the kernel writes y as x lies, not with channels side by side.
template <typename Kernels>
ConvForwardResult conv_forward(ADDER_CAUSAL_CONV1D_ARGUMENTS, bool as_steps) {
  const int64_t sequences = check_causal_conv1d(ADDER_CAUSAL_CONV1D_NAMES).expect_int();
  if (present(cu_seqlens)) check_cu_seqlens_values("causal_conv1d", *cu_seqlens, x.size(1));
  const at::Tensor y = as_steps ? empty_as(x) : at::empty(x.sizes(), x.options());
  const at::Tensor final_window = at::empty({sequences, weight.size(1) - 1, x.size(2)}, weight.options());
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    const ConvCall<T, Kernels> call(ADDER_CAUSAL_CONV1D_NAMES);
    kernels::CausalConv1dForward<T> p;
    static_cast<kernels::CausalConv1dInputs<T>&>(p) = call.inputs;
    p.y = view3<T>(y);
    p.final_window = numbers<kernels::Accumulator<T>>(final_window);
    Kernels::forward(p);
  });
  return {y, final_window};
}

template <typename Kernels>
ConvBackwardResult conv_backward(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                 ADDER_CAUSAL_CONV1D_ARGUMENTS, bool as_steps) {
  check_causal_conv1d_bwd(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES);
  if (present(cu_seqlens)) check_cu_seqlens_values("causal_conv1d", *cu_seqlens, x.size(1));
  const auto like = [](const at::Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const auto like_or_empty = [&](const std::optional<at::Tensor>& t) {
    return present(t) ? like(*t) : at::empty({0}, weight.options());
  };
  const at::Tensor dx = as_steps ? empty_as(x) : like(x), dweight = like(weight), dbias = like_or_empty(bias),
                   dinitial_window = like_or_empty(initial_window);
  dispatch_floating(x.scalar_type(), [&]<typename T>() {
    using R = kernels::Accumulator<T>;
    const ConvCall<T, Kernels> call(ADDER_CAUSAL_CONV1D_NAMES);
    kernels::CausalConv1dBackward<T> p;
    static_cast<kernels::CausalConv1dInputs<T>&>(p) = call.inputs;
    p.dy = view3<const T>(dy);
    at::Tensor kept_dfinal;
    if (present(dfinal_window)) {
      kept_dfinal = dfinal_window->contiguous();
      p.dfinal_window = numbers<const R>(kept_dfinal);
    }
    p.dx = view3<T>(dx);
    p.dweight = numbers<R>(dweight);
    if (present(bias)) p.dbias = numbers<R>(dbias);
    if (present(initial_window)) p.dinitial_window = numbers<R>(dinitial_window);
    const at::Tensor workspace = at::empty({Kernels::backward_workspace_bytes(p)}, x.options().dtype(at::kByte));
    p.workspace = workspace.data_ptr();
    Kernels::backward(p);
  });
  return {dx, dweight, dbias, dinitial_window};
}

}  // namespace adder::ops
