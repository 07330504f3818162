#include "adder/ops/selective_scan.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "adder/ops/checks.h"
#include "adder/ops/selective_scan_schema.h"
#include "adder/ops/step_layout.h"

namespace adder::ops {
namespace {

constexpr const char* kOp = "selective_scan";

#define ADDER_SCAN_SCHEMA                                                                                           \
  "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D=None, Tensor? z=None, Tensor? delta_bias=None, " \
  "bool delta_softplus=False, str discretization=\"euler\", Tensor? initial_state=None, Tensor? mask=None, "        \
  "Tensor? cu_seqlens=None, bool reverse=False"

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("selective_scan(" ADDER_SCAN_SCHEMA ") -> (Tensor y, Tensor final_state)");
  m.def("_selective_scan_fwd(" ADDER_SCAN_SCHEMA
        ", bool save=False) -> (Tensor y, Tensor final_state, Tensor border_states)");
  m.def("_selective_scan_bwd(Tensor dy, Tensor? dfinal_state, Tensor border_states, " ADDER_SCAN_SCHEMA
        ") -> (Tensor du, Tensor ddelta, Tensor dA, Tensor dB, Tensor dC, Tensor dD, Tensor dz, Tensor ddelta_bias, "
        "Tensor dinitial_state)");
}

std::tuple<at::Tensor, at::Tensor> without_gradient(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  auto [y, final_state, border] = selective_scan_fwd(ADDER_SELECTIVE_SCAN_NAMES, false);
  return {y, final_state};
}

at::Tensor like_or_empty(const OptionalTensor& tensor, const at::Tensor& reference) {
  if (present(tensor)) return at::empty_symint(tensor->sym_sizes(), tensor->options());
  return at::empty({0}, reference.options());
}

ScanForwardResult meta_forward(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save) {
  const c10::SymInt sequences = check_selective_scan(ADDER_SELECTIVE_SCAN_NAMES);
  const at::TensorOptions real = u.options().dtype(accumulator_type(u.scalar_type()));
  c10::SymInt border_size = 0;
  if (save) {
    const c10::SymInt groups = B.dim() == 4 ? B.sym_size(2) : C.dim() == 4 ? C.sym_size(2) : c10::SymInt(1);
    border_size = kernels::selective_scan_border_size(sequences, u.sym_size(1), present(cu_seqlens), u.sym_size(2),
                                                      A.sym_size(1), groups, A.is_complex());
  }
  const at::Tensor border = at::empty_symint({border_size}, real);
  return {empty_as(u), at::empty_symint({sequences, u.sym_size(2), A.sym_size(1)}, A.options()), border};
}

ScanBackwardResult meta_backward(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                 const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  check_selective_scan_bwd(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES);
  return {empty_as(u),
          empty_as(delta),
          empty_as(A),
          empty_as(B),
          empty_as(C),
          like_or_empty(D, A),
          present(z) ? empty_as(*z) : at::empty({0}, u.options()),
          like_or_empty(delta_bias, A),
          like_or_empty(initial_state, A)};
}

TORCH_LIBRARY_IMPL(adder, CompositeExplicitAutograd, m) {
  m.impl("selective_scan", TORCH_FN(without_gradient));
}

TORCH_LIBRARY_IMPL(adder, Meta, m) {
  m.impl("_selective_scan_fwd", TORCH_FN(meta_forward));
  m.impl("_selective_scan_bwd", TORCH_FN(meta_backward));
}

}  // namespace

kernels::Discretization discretization_of(c10::string_view name) {
  if (name == "euler") return kernels::Discretization::kEuler;
  if (name == "zoh") return kernels::Discretization::kZoh;
  TORCH_CHECK_VALUE(false, kOp, ": discretization must be \"euler\" or \"zoh\", got \"", std::string(name), "\"");
}

c10::SymInt check_selective_scan(ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  (void)delta_softplus;
  (void)reverse;
  discretization_of(discretization);
  check_floating(kOp, "u", u);
  check_shape(kOp, "u", u, "(B, L, D)", {-1, -1, -1});
  const c10::SymInt batch = u.sym_size(0), length = u.sym_size(1), channels = u.sym_size(2);
  const at::ScalarType type = u.scalar_type(), real = accumulator_type(type);
  const bool complex = A.is_complex();
  const at::ScalarType number = complex ? at::toComplexType(real) : real;

  check_dtype(kOp, "delta", delta, type);
  check_shape(kOp, "delta", delta, "(B, L, D)", {batch, length, channels});
  check_dtype(kOp, "A", A, number);
  check_shape(kOp, "A", A, "(D, N)", {channels, -1});
  const c10::SymInt state = A.sym_size(1);
  TORCH_CHECK_VALUE(state >= 1, kOp, ": A must have at least one state, got shape (D, N) with N = ", state);
  const c10::SymInt values = complex ? state * 2 : state;
  std::optional<c10::SymInt> groups;
  for (const auto& [name, tensor] : {std::pair("B", &B), std::pair("C", &C)}) {
    TORCH_CHECK_VALUE(tensor->dim() == 2 || tensor->dim() == 4, kOp, ": ", name, " must have shape (B, L, G, ",
                      complex ? "2 N" : "N", ") per step or (D, N) constant, got ", tensor->dim(), " dimensions");
    check_device(kOp, name, *tensor, u, "u");
    if (tensor->dim() == 2) {
      check_dtype(kOp, name, *tensor, number);
      check_shape(kOp, name, *tensor, "(D, N)", {channels, state});
      continue;
    }
    check_dtype(kOp, name, *tensor, type);
    check_shape(kOp, name, *tensor, complex ? "(B, L, G, 2 N)" : "(B, L, G, N)", {batch, length, -1, values});
    const c10::SymInt g = tensor->sym_size(2);
    TORCH_CHECK_VALUE(g >= 1 && channels % g == 0, kOp, ": ", name,
                      " must have a number of groups G that divides D = ", channels, ", got G = ", g);
    TORCH_CHECK_VALUE(!groups.has_value() || *groups == g, kOp, ": B and C must have the same number of groups, got ",
                      groups.value_or(g), " and ", g);
    groups = g;
  }
  for (const auto& [name, tensor] : {std::pair("D", &D), std::pair("delta_bias", &delta_bias)})
    if (present(*tensor)) {
      check_dtype(kOp, name, **tensor, real);
      check_shape(kOp, name, **tensor, "(D)", {channels});
      check_device(kOp, name, **tensor, u, "u");
    }
  check_device(kOp, "delta", delta, u, "u");
  check_device(kOp, "A", A, u, "u");
  if (present(z)) {
    check_dtype(kOp, "z", *z, type);
    check_shape(kOp, "z", *z, "(B, L, D)", {batch, length, channels});
    check_device(kOp, "z", *z, u, "u");
  }
  const c10::SymInt sequences = check_sequences(kOp, u, mask, cu_seqlens);
  if (present(initial_state)) {
    check_dtype(kOp, "initial_state", *initial_state, number);
    check_shape(kOp, "initial_state", *initial_state, "(S, D, N)", {sequences, channels, state});
    check_device(kOp, "initial_state", *initial_state, u, "u");
  }
  return sequences;
}

c10::SymInt check_selective_scan_bwd(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                     const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  c10::SymInt sequences = check_selective_scan(ADDER_SELECTIVE_SCAN_NAMES);
  check_dtype(kOp, "dy", dy, u.scalar_type());
  check_shape(kOp, "dy", dy, "(B, L, D)", {u.sym_size(0), u.sym_size(1), u.sym_size(2)});
  check_device(kOp, "dy", dy, u, "u");
  if (present(dfinal_state)) {
    check_dtype(kOp, "dfinal_state", *dfinal_state, A.scalar_type());
    check_shape(kOp, "dfinal_state", *dfinal_state, "(S, D, N)", {sequences, u.sym_size(2), A.sym_size(1)});
    check_device(kOp, "dfinal_state", *dfinal_state, u, "u");
  }
  check_dtype(kOp, "border_states", border_states, accumulator_type(u.scalar_type()));
  check_device(kOp, "border_states", border_states, u, "u");
  return sequences;
}

ScanForwardResult selective_scan_fwd(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool save) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_selective_scan_fwd", "")
                             .typed<ScanForwardResult(ADDER_SELECTIVE_SCAN_ARGUMENTS, bool)>();
  return op.call(ADDER_SELECTIVE_SCAN_NAMES, save);
}

ScanBackwardResult selective_scan_bwd(const at::Tensor& dy, const OptionalTensor& dfinal_state,
                                      const at::Tensor& border_states, ADDER_SELECTIVE_SCAN_ARGUMENTS) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::_selective_scan_bwd", "")
                             .typed<ScanBackwardResult(const at::Tensor&, const OptionalTensor&, const at::Tensor&,
                                                       ADDER_SELECTIVE_SCAN_ARGUMENTS)>();
  return op.call(dy, dfinal_state, border_states, ADDER_SELECTIVE_SCAN_NAMES);
}

std::tuple<at::Tensor, at::Tensor> selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& A,
                                                  const at::Tensor& B, const at::Tensor& C,
                                                  const SelectiveScanOptions& o) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("adder::selective_scan", "")
                             .typed<std::tuple<at::Tensor, at::Tensor>(ADDER_SELECTIVE_SCAN_ARGUMENTS)>();
  return op.call(u, delta, A, B, C, o.D, o.z, o.delta_bias, o.delta_softplus, o.discretization, o.initial_state, o.mask,
                 o.cu_seqlens, o.reverse);
}

}  // namespace adder::ops
