#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "adder/ops/checks.h"
#include "adder/ops/selective_scan_schema.h"
#include "adder/ops/step_layout.h"
#include "adder/ops/views.h"

// From the operators' tensors to kernels and back, for any device.
namespace adder::ops {

template <typename Kernels>
ScanBackwardResult laid_as(const ScanBackwardResult& result, const at::Tensor& u, const at::Tensor& delta,
                           const at::Tensor& B, const at::Tensor& C, const OptionalTensor& z) {
  const auto& [du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial] = result;
  return {laid_as<Kernels>(du, u),
          laid_as<Kernels>(ddelta, delta),
          dA,
          laid_as<Kernels>(dB, B),
          laid_as<Kernels>(dC, C),
          dD,
          present(z) ? laid_as<Kernels>(dz, *z) : dz,
          ddelta_bias,
          dinitial};
}

// Owns what the views of a call point into. Kernels: the kernels of one device, as static functions.
template <typename T, typename Kernels>
struct ScanCall {
  using R = kernels::Accumulator<T>;
  kernels::SelectiveScanInputs<T> inputs;
  at::Tensor kept_A, kept_B, kept_C, kept_state, kept_offsets;

  explicit ScanCall(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
    kernels::SelectiveScanInputs<T>& p = inputs;
    if (present(cu_seqlens)) kept_offsets = Kernels::offsets(cu_seqlens->contiguous(), u.device());
    p.layout = sequence_layout(u, mask, kept_offsets, reverse);
    p.channels = u.size(2);
    p.state = A.size(1);
    p.discretization = discretization_of(discretization);
    p.complex = A.is_complex();
    p.delta_softplus = delta_softplus;
    p.threads = at::get_num_threads();
    p.u = view3<const T>(u);
    p.delta = view3<const T>(delta);
    if (present(z)) p.z = view3<const T>(*z);
    kept_A = A.resolve_conj();
    p.A = view2<const R>(kept_A);
    p.constant_B = B.dim() == 2;
    p.constant_C = C.dim() == 2;
    kept_B = B.resolve_conj();
    kept_C = C.resolve_conj();
    if (p.constant_B)
      p.B_const = view2<const R>(kept_B);
    else
      p.B_step = view4<const T>(kept_B);
    if (p.constant_C)
      p.C_const = view2<const R>(kept_C);
    else
      p.C_step = view4<const T>(kept_C);
    if (!p.constant_B)
      p.groups = B.size(2);
    else if (!p.constant_C)
      p.groups = C.size(2);
    if (present(D)) p.D = view1<const R>(*D);
    if (present(delta_bias)) p.delta_bias = view1<const R>(*delta_bias);
    if (present(initial_state)) {
      kept_state = initial_state->resolve_conj().contiguous();
      p.initial_state = numbers<const R>(kept_state);
    }
  }
};

// `as_steps`: the kernel writes y as u lies, not with channels side by side.
template <typename Kernels>
ScanForwardResult scan_forward(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save, bool as_steps) {
  const int64_t sequences = check_selective_scan(ADDER_SELECTIVE_SCAN_NAMES).expect_int();
  if (present(cu_seqlens)) check_cu_seqlens_values("selective_scan", *cu_seqlens, u.size(1));
  const at::Tensor y = as_steps ? empty_as(u) : at::empty(u.sizes(), u.options());
  const at::Tensor final_state = at::empty({sequences, u.size(2), A.size(1)}, A.options());
  at::Tensor border = at::empty({0}, u.options().dtype(accumulator_type(u.scalar_type())));
  dispatch_floating(u.scalar_type(), [&]<typename T>() {
    using R = kernels::Accumulator<T>;
    const ScanCall<T, Kernels> call(ADDER_SELECTIVE_SCAN_NAMES);
    kernels::SelectiveScanForward<T> p;
    static_cast<kernels::SelectiveScanInputs<T>&>(p) = call.inputs;
    p.y = view3<T>(y);
    p.final_state = numbers<R>(final_state);
    if (save) {
      border.resize_({kernels::selective_scan_border_size(sequences, u.size(1), present(cu_seqlens), p.channels,
                                                          p.state, p.groups, p.complex)});
      p.border_states = numbers<R>(border);
    }
    const at::Tensor workspace = at::empty({Kernels::forward_workspace_bytes(p)}, u.options().dtype(at::kByte));
    p.workspace = workspace.data_ptr();
    Kernels::forward(p);
  });
  return {y, final_state, border};
}

template <typename Kernels>
ScanBackwardResult scan_backward(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                 const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  const int64_t sequences =
      check_selective_scan_bwd(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES).expect_int();
  if (present(cu_seqlens)) check_cu_seqlens_values("selective_scan", *cu_seqlens, u.size(1));
  const auto like = [](const at::Tensor& t) { return at::empty(t.sizes(), t.options()); };
  const auto like_or_empty = [&](const OptionalTensor& t) {
    return present(t) ? like(*t) : at::empty({0}, u.options());
  };
  const at::Tensor du = like(u), ddelta = like(delta), dA = like(A), dB = like(B), dC = like(C);
  const at::Tensor dD = like_or_empty(D), dz = like_or_empty(z), ddelta_bias = like_or_empty(delta_bias),
                   dinitial = like_or_empty(initial_state);
  dispatch_floating(u.scalar_type(), [&]<typename T>() {
    using R = kernels::Accumulator<T>;
    const ScanCall<T, Kernels> call(ADDER_SELECTIVE_SCAN_NAMES);
    kernels::SelectiveScanBackward<T> p;
    static_cast<kernels::SelectiveScanInputs<T>&>(p) = call.inputs;
    const int64_t borders = kernels::selective_scan_border_size(sequences, u.size(1), present(cu_seqlens), p.channels,
                                                                p.state, p.groups, p.complex);
    TORCH_CHECK_VALUE(border_states.numel() == borders, "selective_scan: border_states must be the forward pass's ",
                      borders, " values, got ", border_states.numel());
    const at::Tensor border = border_states.contiguous();
    p.border_states = numbers<const R>(border);
    p.dy = view3<const T>(dy);
    at::Tensor dfinal;
    if (present(dfinal_state)) {
      dfinal = dfinal_state->resolve_conj().contiguous();
      p.dfinal_state = numbers<const R>(dfinal);
    }
    p.du = view3<T>(du);
    p.ddelta = view3<T>(ddelta);
    if (present(z)) p.dz = view3<T>(dz);
    p.dA = numbers<R>(dA);
    if (p.constant_B)
      p.dB_const = numbers<R>(dB);
    else
      p.dB_step = view4<T>(dB);
    if (p.constant_C)
      p.dC_const = numbers<R>(dC);
    else
      p.dC_step = view4<T>(dC);
    if (present(D)) p.dD = numbers<R>(dD);
    if (present(delta_bias)) p.ddelta_bias = numbers<R>(ddelta_bias);
    if (present(initial_state)) p.dinitial_state = numbers<R>(dinitial);
    const at::Tensor workspace = at::empty({Kernels::backward_workspace_bytes(p)}, u.options().dtype(at::kByte));
    p.workspace = workspace.data_ptr();
    Kernels::backward(p);
  });
  return {du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, dinitial};
}

}  // namespace adder::ops
