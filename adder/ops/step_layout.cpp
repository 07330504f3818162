#include "adder/ops/step_layout.h"

#include <ATen/ATen.h>

namespace adder::ops {

bool steps_side_by_side(const at::Tensor& t) {
  return t.dim() >= 3 && t.sym_size(1) > 1 && t.sym_size(-1) > 1 && t.sym_stride(1) == 1 && t.sym_stride(-1) != 1;
}

at::Tensor empty_as(const at::Tensor& t) {
  if (!steps_side_by_side(t)) return at::empty_symint(t.sym_sizes(), t.options());
  const at::Tensor steps_last = t.movedim(1, -1);
  return at::empty_symint(steps_last.sym_sizes(), t.options()).movedim(-1, 1);
}

}  // namespace adder::ops
