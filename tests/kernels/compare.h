#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "adder/kernels/dtype.h"
#include "tests/device.h"
#include "tests/tolerances.h"

// What the tests of row kernels share: values, and how results are compared.
namespace adder::tests {

// Normal values, rounded to T.
template <typename T>
Buffer<T> normal_values(int64_t count, double scale, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  Buffer<T> values(count);
  for (T& x : values) x = kernels::from_float<T>(static_cast<kernels::Accumulator<T>>(normal(random)));
  return values;
}

template <typename T>
Buffer<T> nan_values(int64_t count) {
  return Buffer<T>(count, kernels::from_float<T>(std::numeric_limits<kernels::Accumulator<T>>::quiet_NaN()));
}

template <typename T, typename Allocator>
std::vector<double> doubles(const std::vector<T, Allocator>& values) {
  std::vector<double> out;
  out.reserve(values.size());
  for (const T x : values) out.push_back(static_cast<double>(kernels::to_float(x)));
  return out;
}

template <typename T, typename Allocator>
bool same_bits(const std::vector<T, Allocator>& a, const std::vector<T, Allocator>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <typename T, typename Allocator, typename Expected>
void expect_near(const char* name, const std::vector<T, Allocator>& got, const Expected& expected,
                 Tolerance tolerance) {
  ASSERT_EQ(got.size(), expected.size()) << name;
  double scale = 0;
  for (const double x : expected)
    if (std::isfinite(x)) scale = std::max(scale, std::fabs(x));
  int wrong = 0;
  for (size_t i = 0; i < got.size() && wrong < 5; ++i) {
    const auto x = static_cast<double>(kernels::to_float(got[i]));
    if (near(x, expected[i], scale, tolerance)) continue;
    ++wrong;
    ADD_FAILURE() << name << "[" << i << "] is " << x << ", expected " << expected[i] << " (largest " << scale << ")";
  }
}

template <typename T>
constexpr Tolerance forward_tolerance() {
  if constexpr (std::is_same_v<T, double>) return kFloat64Forward;
  if constexpr (std::is_same_v<T, kernels::bfloat16>) return kBFloat16;
  if constexpr (std::is_same_v<T, kernels::float16>) return kFloat16;
  return kFloat32Forward;
}

template <typename T>
constexpr Tolerance backward_tolerance() {
  if constexpr (std::is_same_v<T, double>) return kFloat64Backward;
  if constexpr (std::is_same_v<T, float>) return kFloat32Backward;
  return forward_tolerance<T>();
}

}  // namespace adder::tests
