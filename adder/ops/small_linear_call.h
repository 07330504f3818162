#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "adder/kernels/small_linear.h"
#include "adder/ops/checks.h"
#include "adder/ops/small_linear_schema.h"
#include "adder/ops/views.h"

// From the operator's tensors to kernels and back, for any device.
namespace adder::ops {

template <typename Kernels, typename X, typename W>
void run_small_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t rows,
                      const at::Tensor& y) {
  using R = kernels::Accumulator<X>;
  kernels::SmallLinear<X, W> p;
  p.in = weight.size(1);
  p.out = weight.size(0);
  p.weight = numbers<const W>(weight);
  if (bias.defined()) p.bias = numbers<const R>(bias);
  p.threads = at::get_num_threads();
  p.rows = rows;
  p.x = numbers<const X>(x);
  p.y = numbers<X>(y);
  Kernels::run(p);
}

// Kernels: the kernels of one device, as static functions.
template <typename Kernels>
at::Tensor small_linear_forward(ADDER_SMALL_LINEAR_ARGUMENTS) {
  check_small_linear(ADDER_SMALL_LINEAR_NAMES);
  at::DimVector sizes(x.sizes().begin(), x.sizes().end());
  sizes.back() = weight.size(0);
  const at::Tensor y = at::empty(sizes, x.options());
  const int64_t rows = c10::multiply_integers(sizes.begin(), sizes.end() - 1);
  const at::Tensor x_rows = x.contiguous(), weight_rows = weight.contiguous();
  const at::Tensor wide_bias = present(bias) ? bias->to(accumulator_type(x.scalar_type())).contiguous() : at::Tensor();
  dispatch_floating(x.scalar_type(), [&]<typename X>() {
    if constexpr (std::is_same_v<X, float>) {
      if (weight.scalar_type() == at::kBFloat16)
        return run_small_linear<Kernels, X, kernels::bfloat16>(x_rows, weight_rows, wide_bias, rows, y);
      if (weight.scalar_type() == at::kHalf)
        return run_small_linear<Kernels, X, kernels::float16>(x_rows, weight_rows, wide_bias, rows, y);
    }
    run_small_linear<Kernels, X, X>(x_rows, weight_rows, wide_bias, rows, y);
  });
  return y;
}

}  // namespace adder::ops
