#include "adder/ops/causal_conv1d.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/causal_conv1d_schema.h"
#include "adder/ops/checks.h"
#include "adder/ops/step_layout.h"

namespace adder::ops {
namespace {

constexpr const char* kOp = "causal_conv1d";

#define ADDER_CONV_SCHEMA                                                                                 \
  "Tensor x, Tensor weight, Tensor? bias=None, *, str activation=\"none\", Tensor? initial_window=None, " \
  "Tensor? mask=None, Tensor? cu_seqlens=None, bool reverse=False"

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("causal_conv1d(" ADDER_CONV_SCHEMA ") -> (Tensor y, Tensor final_window)");
  m.def("_causal_conv1d_bwd(Tensor dy, Tensor? dfinal_window, " ADDER_CONV_SCHEMA
        ") -> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dinitial_window)");
}

at::Tensor like(const at::Tensor& tensor) {
  return at::empty_symint(tensor.sym_sizes(), tensor.options());
}
at::Tensor like_or_empty(const std::optional<at::Tensor>& tensor, const at::Tensor& reference) {
  return present(tensor) ? like(*tensor) : at::empty({0}, reference.options());
}

ConvForwardResult meta_forward(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  const c10::SymInt sequences = check_causal_conv1d(ADDER_CAUSAL_CONV1D_NAMES);
  return {empty_as(x), at::empty_symint({sequences, weight.sym_size(1) - 1, x.sym_size(2)}, weight.options())};
}

ConvBackwardResult meta_backward(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                 ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  check_causal_conv1d_bwd(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES);
  return {empty_as(x), like(weight), like_or_empty(bias, weight), like_or_empty(initial_window, weight)};
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("causal_conv1d", TORCH_FN(meta_forward));
  m.impl("_causal_conv1d_bwd", TORCH_FN(meta_backward));
}

}  // namespace

kernels::ConvActivation conv_activation_of(c10::string_view name) {
  if (name == "none") return kernels::ConvActivation::kNone;
  if (name == "silu") return kernels::ConvActivation::kSilu;
  TORCH_CHECK_VALUE(false, kOp, ": activation must be \"none\" or \"silu\", got \"", std::string(name), "\"");
}

c10::SymInt check_causal_conv1d(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  (void)reverse;
  conv_activation_of(activation);
  check_floating(kOp, "x", x);
  check_shape(kOp, "x", x, "(B, L, D)", {-1, -1, -1});
  const c10::SymInt channels = x.sym_size(2);
  const at::ScalarType real = accumulator_type(x.scalar_type());
  check_dtype(kOp, "weight", weight, real);
  check_shape(kOp, "weight", weight, "(D, K)", {channels, -1});
  check_device(kOp, "weight", weight, x, "x");
  const c10::SymInt width = weight.sym_size(1);
  TORCH_CHECK_VALUE(width >= 1, kOp, ": weight must have shape (D, K) with a width K of at least 1, got K = ", width);
  if (present(bias)) {
    check_dtype(kOp, "bias", *bias, real);
    check_shape(kOp, "bias", *bias, "(D)", {channels});
    check_device(kOp, "bias", *bias, x, "x");
  }
  const c10::SymInt sequences = check_sequences(kOp, x, mask, cu_seqlens);
  if (present(initial_window)) {
    check_dtype(kOp, "initial_window", *initial_window, real);
    check_shape(kOp, "initial_window", *initial_window, "(S, K - 1, D)", {sequences, width - 1, channels});
    check_device(kOp, "initial_window", *initial_window, x, "x");
  }
  return sequences;
}

c10::SymInt check_causal_conv1d_bwd(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                    ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  const c10::SymInt sequences = check_causal_conv1d(ADDER_CAUSAL_CONV1D_NAMES);
  check_dtype(kOp, "dy", dy, x.scalar_type());
  check_shape(kOp, "dy", dy, "(B, L, D)", {x.sym_size(0), x.sym_size(1), x.sym_size(2)});
  check_device(kOp, "dy", dy, x, "x");
  if (present(dfinal_window)) {
    check_dtype(kOp, "dfinal_window", *dfinal_window, weight.scalar_type());
    check_shape(kOp, "dfinal_window", *dfinal_window, "(S, K - 1, D)",
                {sequences, weight.sym_size(1) - 1, x.sym_size(2)});
    check_device(kOp, "dfinal_window", *dfinal_window, x, "x");
  }
  return sequences;
}

ConvForwardResult causal_conv1d_fwd(ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::causal_conv1d", "")
                             .typed<ConvForwardResult(ADDER_CAUSAL_CONV1D_ARGUMENTS)>();
  return op.call(ADDER_CAUSAL_CONV1D_NAMES);
}

ConvBackwardResult causal_conv1d_bwd(const at::Tensor& dy, const std::optional<at::Tensor>& dfinal_window,
                                     ADDER_CAUSAL_CONV1D_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_causal_conv1d_bwd", "")
                             .typed<ConvBackwardResult(const at::Tensor&, const std::optional<at::Tensor>&,
                                                       ADDER_CAUSAL_CONV1D_ARGUMENTS)>();
  return op.call(dy, dfinal_window, ADDER_CAUSAL_CONV1D_NAMES);
}

std::tuple<at::Tensor, at::Tensor> causal_conv1d(const at::Tensor& x, const at::Tensor& weight,
                                                 const std::optional<at::Tensor>& bias, const CausalConv1dOptions& o) {
  return causal_conv1d_fwd(x, weight, bias, o.activation, o.initial_window, o.mask, o.cu_seqlens, o.reverse);
}

}  // namespace adder::ops
