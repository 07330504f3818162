#include "adder/ops/add_norm.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/add_norm_schema.h"
#include "adder/ops/checks.h"

namespace adder::ops {
namespace {

constexpr const char* kOp = "add_norm";

#define ADDER_ADD_NORM_SCHEMA                                                                      \
  "Tensor x, Tensor? residual, Tensor weight, Tensor? bias, *, str kind=\"rms\", float eps=1e-5, " \
  "ScalarType? out_dtype=None"

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("add_norm(" ADDER_ADD_NORM_SCHEMA ") -> (Tensor y, Tensor residual_out)");
  m.def("_add_norm_fwd(" ADDER_ADD_NORM_SCHEMA ") -> (Tensor y, Tensor residual_out, Tensor rstd, Tensor mean)");
  m.def(
      "_add_norm_bwd(Tensor dy, Tensor? dresidual_out, Tensor residual_out, Tensor weight, Tensor rstd, Tensor mean, "
      "*, "
      "str kind, ScalarType x_dtype, bool need_dresidual, bool need_dbias) "
      "-> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)");
}

std::tuple<at::Tensor, at::Tensor> without_gradient(ADDER_ADD_NORM_ARGUMENTS) {
  auto [y, residual_out, rstd, mean] = add_norm_fwd(ADDER_ADD_NORM_NAMES);
  return {y, residual_out};
}

AddNormForwardResult meta_forward(ADDER_ADD_NORM_ARGUMENTS) {
  check_add_norm(ADDER_ADD_NORM_NAMES);
  const at::TensorOptions real = x.options().dtype(accumulator_type(x.scalar_type()));
  c10::SymInt rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.sym_size(i);
  const bool layer = norm_kind_of(kind) == kernels::NormKind::kLayer;
  return {at::empty_symint(x.sym_sizes(), x.options().dtype(out_dtype.value_or(x.scalar_type()))),
          at::empty_symint(x.sym_sizes(), real), at::empty_symint({rows}, real),
          at::empty_symint({layer ? rows : c10::SymInt(0)}, real)};
}

AddNormBackwardResult meta_backward(ADDER_ADD_NORM_BACKWARD_ARGUMENTS) {
  check_add_norm_bwd(ADDER_ADD_NORM_BACKWARD_NAMES);
  const at::TensorOptions real = residual_out.options();
  const c10::SymIntArrayRef sizes = residual_out.sym_sizes();
  const c10::SymInt& width = sizes.back();
  return {
      at::empty_symint(sizes, real.dtype(x_dtype)),
      need_dresidual && x_dtype != residual_out.scalar_type() ? at::empty_symint(sizes, real) : at::empty({0}, real),
      at::empty_symint({width}, real), at::empty_symint({need_dbias ? width : c10::SymInt(0)}, real)};
}

TORCH_LIBRARY_IMPL(adder, CompositeExplicitAutograd, m) {
  m.impl("add_norm", TORCH_FN(without_gradient));
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("_add_norm_fwd", TORCH_FN(meta_forward));
  m.impl("_add_norm_bwd", TORCH_FN(meta_backward));
}

}  // namespace

kernels::NormKind norm_kind_of(c10::string_view name) {
  if (name == "rms") return kernels::NormKind::kRms;
  if (name == "layer") return kernels::NormKind::kLayer;
  TORCH_CHECK_VALUE(false, kOp, ": kind must be \"rms\" or \"layer\", got \"", std::string(name), "\"");
}

void check_add_norm_bwd(ADDER_ADD_NORM_BACKWARD_ARGUMENTS) {
  (void)need_dresidual, (void)need_dbias;
  const bool layer = norm_kind_of(kind) == kernels::NormKind::kLayer;
  check_floating(kOp, "dy", dy);
  TORCH_CHECK_VALUE(residual_out.dim() >= 1 && residual_out.sym_size(-1) >= 1, kOp,
                    ": residual_out must have shape (..., D) with D at least 1, got ", residual_out.sym_sizes());
  check_dtype(kOp, "residual_out", residual_out, accumulator_type(x_dtype));
  const at::ScalarType real = residual_out.scalar_type();
  c10::SymInt rows = 1;
  for (int64_t i = 0; i + 1 < residual_out.dim(); ++i) rows *= residual_out.sym_size(i);
  const auto same = [&](const char* name, const at::Tensor& t) {
    TORCH_CHECK_VALUE(t.sym_sizes() == residual_out.sym_sizes(), kOp, ": ", name,
                      " must have the shape of residual_out, ", residual_out.sym_sizes(), ", got ", t.sym_sizes());
    check_device(kOp, name, t, residual_out, "residual_out");
  };
  same("dy", dy);
  if (present(dresidual_out)) {
    same("dresidual_out", *dresidual_out);
    check_dtype(kOp, "dresidual_out", *dresidual_out, real);
  }
  const auto row_values = [&](const char* name, const at::Tensor& t) {
    check_dtype(kOp, name, t, real);
    check_shape(kOp, name, t, "(rows)", {rows});
    check_device(kOp, name, t, residual_out, "residual_out");
  };
  row_values("rstd", rstd);
  if (layer) row_values("mean", mean);
  check_floating(kOp, "weight", weight);
  check_shape(kOp, "weight", weight, "(D)", {residual_out.sym_size(-1)});
  check_device(kOp, "weight", weight, residual_out, "residual_out");
}

void check_add_norm(ADDER_ADD_NORM_ARGUMENTS) {
  norm_kind_of(kind);
  TORCH_CHECK_VALUE(eps >= 0, kOp, ": eps must not be negative, got ", eps);
  check_floating(kOp, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.sym_size(-1) >= 1, kOp, ": x must have shape (..., D) with D from 1, got ",
                    x.sym_sizes());
  const at::ScalarType real = accumulator_type(x.scalar_type());
  if (present(residual)) {
    check_dtype(kOp, "residual", *residual, real);
    TORCH_CHECK_VALUE(residual->sym_sizes() == x.sym_sizes(), kOp,
                      ": residual must have the shape of x (..., D) = ", x.sym_sizes(), ", got ",
                      residual->sym_sizes());
    check_device(kOp, "residual", *residual, x, "x");
  }
  check_floating(kOp, "weight", weight);
  check_shape(kOp, "weight", weight, "(D)", {x.sym_size(-1)});
  check_device(kOp, "weight", weight, x, "x");
  if (present(bias)) {
    check_floating(kOp, "bias", *bias);
    check_shape(kOp, "bias", *bias, "(D)", {x.sym_size(-1)});
    check_device(kOp, "bias", *bias, x, "x");
  }
  if (!out_dtype.has_value()) return;
  const at::ScalarType out = *out_dtype;
  const bool wide = real == at::kDouble;
  const bool known = wide ? out == at::kDouble : out == at::kFloat || out == at::kBFloat16 || out == at::kHalf;
  TORCH_CHECK_VALUE(known, kOp, ": out_dtype must be ", wide ? "Double" : "Float, BFloat16 or Half", " where x is ",
                    x.scalar_type(), ", got ", out);
}

AddNormForwardResult add_norm_fwd(ADDER_ADD_NORM_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_add_norm_fwd", "")
                             .typed<AddNormForwardResult(ADDER_ADD_NORM_ARGUMENTS)>();
  return op.call(ADDER_ADD_NORM_NAMES);
}

AddNormBackwardResult add_norm_bwd(ADDER_ADD_NORM_BACKWARD_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_add_norm_bwd", "")
                             .typed<AddNormBackwardResult(ADDER_ADD_NORM_BACKWARD_ARGUMENTS)>();
  return op.call(ADDER_ADD_NORM_BACKWARD_NAMES);
}

std::tuple<at::Tensor, at::Tensor> add_norm(const at::Tensor& x, const OptionalTensor& residual,
                                            const at::Tensor& weight, const OptionalTensor& bias,
                                            const AddNormOptions& o) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::add_norm", "")
                             .typed<std::tuple<at::Tensor, at::Tensor>(ADDER_ADD_NORM_ARGUMENTS)>();
  return op.call(x, residual, weight, bias, o.kind, o.eps, o.out_dtype);
}

std::tuple<at::Tensor, at::Tensor> add_norm_composite(const at::Tensor& x, const OptionalTensor& residual,
                                                      const at::Tensor& weight, const OptionalTensor& bias,
                                                      const AddNormOptions& o) {
  const at::ScalarType real = accumulator_type(x.scalar_type());
  const at::Tensor r = present(residual) ? x.to(real) + *residual : x.to(real);
  const at::Tensor centred = norm_kind_of(o.kind) == kernels::NormKind::kLayer ? r - r.mean(-1, true) : r;
  at::Tensor y = centred * at::rsqrt(centred.square().mean(-1, true) + o.eps) * weight.to(real);
  if (present(bias)) y = y + bias->to(real);
  return {y.to(o.out_dtype.value_or(x.scalar_type())), r};
}

}  // namespace adder::ops
