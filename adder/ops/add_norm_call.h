#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "adder/ops/add_norm_schema.h"
#include "adder/ops/checks.h"
#include "adder/ops/views.h"

// From the operators' tensors to kernels and back, for any device.
namespace adder::ops {

// Calls f.operator()<T, Out>() for the pair of types: double goes with itself alone.
template <typename F>
void dispatch_pair(at::ScalarType x, at::ScalarType out, const F& f) {
  TORCH_CHECK_VALUE((x == at::kDouble) == (out == at::kDouble), "add_norm: dtypes of x and of its output must both be ",
                    "Double or neither, got ", x, " and ", out);
  dispatch_floating(x, [&]<typename T>() {
    if constexpr (std::is_same_v<T, double>)
      f.template operator()<double, double>();
    else
      dispatch_floating(out, [&]<typename Out>() {
        if constexpr (!std::is_same_v<Out, double>) f.template operator()<T, Out>();
      });
  });
}

// Kernels: the kernels of one device, as static functions.
template <typename Kernels>
AddNormForwardResult norm_forward(ADDER_ADD_NORM_ARGUMENTS) {
  check_add_norm(ADDER_ADD_NORM_NAMES);
  const at::ScalarType real = accumulator_type(x.scalar_type()), out = out_dtype.value_or(x.scalar_type());
  const at::TensorOptions options = x.options().dtype(real);
  const int64_t width = x.size(-1), rows = x.numel() / width;
  const bool layer = norm_kind_of(kind) == kernels::NormKind::kLayer;
  const at::Tensor y = at::empty(x.sizes(), x.options().dtype(out)), residual_out = at::empty(x.sizes(), options);
  const at::Tensor rstd = at::empty({rows}, options), mean = at::empty({layer ? rows : 0}, options);
  const at::Tensor x_rows = x.contiguous(), weight_row = weight.to(real).contiguous();
  const at::Tensor residual_rows = present(residual) ? residual->contiguous() : at::Tensor();
  const at::Tensor bias_row = present(bias) ? bias->to(real).contiguous() : at::Tensor();
  dispatch_pair(x.scalar_type(), out, [&]<typename T, typename Out>() {
    using R = kernels::Accumulator<T>;
    kernels::AddNormForward<T, Out> p;
    p.rows = rows;
    p.width = width;
    p.kind = norm_kind_of(kind);
    p.eps = eps;
    p.x = numbers<const T>(x_rows);
    if (residual_rows.defined()) p.residual = numbers<const R>(residual_rows);
    p.weight = numbers<const R>(weight_row);
    if (bias_row.defined()) p.bias = numbers<const R>(bias_row);
    p.y = numbers<Out>(y);
    p.residual_out = numbers<R>(residual_out);
    p.rstd = numbers<R>(rstd);
    if (layer) p.mean = numbers<R>(mean);
    p.threads = at::get_num_threads();
    Kernels::forward(p);
  });
  return {y, residual_out, rstd, mean};
}

template <typename Kernels>
AddNormBackwardResult norm_backward(ADDER_ADD_NORM_BACKWARD_ARGUMENTS) {
  check_add_norm_bwd(ADDER_ADD_NORM_BACKWARD_NAMES);
  const at::ScalarType real = residual_out.scalar_type();
  const at::TensorOptions options = residual_out.options();
  const int64_t width = residual_out.size(-1), rows = residual_out.numel() / width;
  const at::Tensor dx = at::empty(residual_out.sizes(), options.dtype(x_dtype));
  const bool own_dresidual = need_dresidual && x_dtype != real;
  const at::Tensor dresidual = own_dresidual ? at::empty(residual_out.sizes(), options) : at::empty({0}, options);
  const at::Tensor dweight = at::empty({width}, options), dbias = at::empty({need_dbias ? width : 0}, options);
  const at::Tensor dy_rows = dy.contiguous(), residual_out_rows = residual_out.contiguous();
  const at::Tensor dresidual_out_rows = present(dresidual_out) ? dresidual_out->contiguous() : at::Tensor();
  const at::Tensor weight_row = weight.to(real).contiguous();
  const at::Tensor rstd_rows = rstd.contiguous(), mean_rows = mean.contiguous();
  dispatch_pair(x_dtype, dy.scalar_type(), [&]<typename T, typename Out>() {
    using R = kernels::Accumulator<T>;
    kernels::AddNormBackward<T, Out> p;
    p.rows = rows;
    p.width = width;
    p.kind = norm_kind_of(kind);
    p.dy = numbers<const Out>(dy_rows);
    if (dresidual_out_rows.defined()) p.dresidual_out = numbers<const R>(dresidual_out_rows);
    p.residual_out = numbers<const R>(residual_out_rows);
    p.rstd = numbers<const R>(rstd_rows);
    if (p.kind == kernels::NormKind::kLayer) p.mean = numbers<const R>(mean_rows);
    p.weight = numbers<const R>(weight_row);
    p.dx = numbers<T>(dx);
    if (own_dresidual) p.dresidual = numbers<R>(dresidual);
    p.dweight = numbers<R>(dweight);
    if (need_dbias) p.dbias = numbers<R>(dbias);
    const at::Tensor workspace = at::empty({Kernels::backward_workspace_bytes(p)}, options.dtype(at::kByte));
    p.workspace = workspace.data_ptr();
    p.threads = at::get_num_threads();
    Kernels::backward(p);
  });
  return {dx, dresidual, dweight, dbias};
}

}  // namespace adder::ops
