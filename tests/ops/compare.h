#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/ops/on_device.h"
#include "tests/tolerances.h"

// What the tests of operators share.
namespace adder::tests {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// Every element within the tolerance of `expected`, which may be of a wider type; NaN and infinities in the same
// places.
inline void expect_near(const std::string& name, const at::Tensor& got, const at::Tensor& expected,
                        Tolerance tolerance) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << name;
  if (got.numel() == 0) return;
  const at::Tensor a = got.detach().to(at::kDouble), b = expected.detach().to(at::kDouble);
  ASSERT_TRUE(at::equal(a.isfinite(), b.isfinite())) << name << "\n" << a << "\n" << b;
  const at::Tensor finite = b.isfinite();
  const at::Tensor difference = at::where(finite, a - b, at::zeros_like(a)).abs();
  const double scale = at::where(finite, b, at::zeros_like(b)).abs().max().item<double>();
  const at::Tensor excess =
      difference - tolerance.relative * at::where(finite, b, at::zeros_like(b)).abs() - tolerance.scaled * scale;
  EXPECT_LE(excess.max().item<double>(), 0)
      << name << ": largest difference " << difference.max().item<double>() << " at largest value " << scale;
}

inline at::Tensor as_real(const at::Tensor& t) {
  return (t.is_complex() ? torch::view_as_real(t.resolve_conj()) : t).detach().to(torch::kDouble).contiguous();
}

inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const auto bytes = [](const at::Tensor& t) { return t.resolve_conj().contiguous().view({-1}).view(torch::kByte); };
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && torch::equal(bytes(a), bytes(b));
}

// Root mean square of the difference from the truth.
inline double error_of(const at::Tensor& got, const at::Tensor& truth) {
  return (got.detach().to(at::kDouble) - truth.detach().to(at::kDouble)).square().mean().sqrt().item<double>();
}

// A narrow type's result is at most twice as far from the truth as that of plain torch operations in the same type.
inline void expect_at_most_twice_the_error(const std::string& name, const at::Tensor& got, const at::Tensor& composite,
                                           const at::Tensor& truth) {
  EXPECT_EQ(got.sizes(), truth.sizes()) << name;
  if (truth.numel() == 0) return;
  EXPECT_LE(error_of(got, truth), 2 * error_of(composite, truth) + 1e-6 * truth.abs().max().item<double>()) << name;
}

// The text of the exception that f throws, without the backtrace.
inline std::string error_text(const std::function<void()>& f) {
  try {
    f();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

// A leaf that wants a gradient, or nothing.
inline at::Tensor leaf(const at::Tensor& t, at::ScalarType dtype) {
  return t.defined() ? t.detach().to(dtype).clone().requires_grad_(true) : at::Tensor();
}

}  // namespace adder::tests
