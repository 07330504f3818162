#include "adder/ops/checks.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

namespace adder::ops {
namespace {

std::string shape_text(c10::SymIntArrayRef sizes) {
  std::ostringstream text;
  text << '(';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i == 0 ? "" : ", ") << sizes[i];
  text << ')';
  return text.str();
}

}  // namespace

void check_shape(const char* op, const char* name, const at::Tensor& tensor, const char* letters,
                 std::initializer_list<c10::SymInt> expected) {
  const c10::SymIntArrayRef got = tensor.sym_sizes();
  const std::vector<c10::SymInt> wanted(expected);
  bool same = got.size() == wanted.size();
  for (size_t i = 0; same && i < wanted.size(); ++i) {
    const bool any = !wanted[i].is_symbolic() && wanted[i].as_int_unchecked() == -1;
    same = any || got[i] == wanted[i];
  }
  if (same) return;
  std::ostringstream text;
  for (size_t i = 0; i < wanted.size(); ++i) {
    text << (i == 0 ? "(" : ", ");
    if (!wanted[i].is_symbolic() && wanted[i].as_int_unchecked() == -1)
      text << '*';
    else
      text << wanted[i];
  }
  TORCH_CHECK_VALUE(false, op, ": ", name, " must have shape ", letters, " = ", text.str(), "), got ", shape_text(got));
}

void check_dtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType expected) {
  TORCH_CHECK_VALUE(tensor.scalar_type() == expected, op, ": ", name, " must have dtype ", expected, ", got ",
                    tensor.scalar_type());
}

void check_device(const char* op, const char* name, const at::Tensor& tensor, const at::Tensor& like,
                  const char* like_name) {
  TORCH_CHECK_VALUE(tensor.device() == like.device(), op, ": ", name, " must be on the device of ", like_name, " (",
                    like.device(), "), got ", tensor.device());
}

void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_VALUE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf, op, ": ",
                    name, " must have dtype Float, Double, BFloat16 or Half, got ", type);
}

at::ScalarType accumulator_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

c10::SymInt check_sequences(const char* op, const at::Tensor& input, const std::optional<at::Tensor>& mask,
                            const std::optional<at::Tensor>& cu_seqlens) {
  c10::SymInt batch = input.sym_size(0);
  const c10::SymInt length = input.sym_size(1);
  if (present(mask)) {
    check_dtype(op, "mask", *mask, at::kBool);
    check_shape(op, "mask", *mask, "(B, L)", {batch, length});
    check_device(op, "mask", *mask, input, "its input");
  }
  if (!present(cu_seqlens)) return batch;
  check_dtype(op, "cu_seqlens", *cu_seqlens, at::kLong);
  TORCH_CHECK_VALUE(cu_seqlens->device().is_cpu() || input.is_meta(), op, ": cu_seqlens must be on the CPU, got ",
                    cu_seqlens->device());
  TORCH_CHECK_VALUE(cu_seqlens->dim() == 1 && cu_seqlens->sym_size(0) >= 1, op,
                    ": cu_seqlens must have shape (S + 1), got ", shape_text(cu_seqlens->sym_sizes()));
  TORCH_CHECK_VALUE(batch == 1, op, ": cu_seqlens packs sequences into one row, so B must be 1, got ", batch);
  return cu_seqlens->sym_size(0) - 1;
}

void check_cu_seqlens_values(const char* op, const at::Tensor& cu_seqlens, int64_t length) {
  const auto values = cu_seqlens.accessor<int64_t, 1>();
  const int64_t last = values.size(0) - 1;
  TORCH_CHECK_VALUE(values[0] == 0, op, ": cu_seqlens must start at 0, got ", values[0]);
  for (int64_t i = 1; i <= last; ++i)
    TORCH_CHECK_VALUE(values[i] >= values[i - 1], op, ": cu_seqlens must never fall, got ", values[i - 1], " then ",
                      values[i], " at index ", i);
  TORCH_CHECK_VALUE(values[last] == length, op, ": cu_seqlens must end at L = ", length, ", got ", values[last]);
}

bool any_requires_grad(std::initializer_list<std::optional<at::Tensor>> tensors) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const std::optional<at::Tensor>& t) { return present(t) && t->requires_grad(); });
}

void check_no_forward_gradient(const char* op, std::initializer_list<std::optional<at::Tensor>> tensors) {
  for (const std::optional<at::Tensor>& t : tensors)
    TORCH_CHECK_NOT_IMPLEMENTED(!present(t) || !t->_fw_grad(0).defined(), op,
                                ": has no forward-mode derivative (jvp, jacfwd); vjp and jacrev have the derivative");
}

}  // namespace adder::ops
