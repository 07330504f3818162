#include "adder/kernels/sum_of_squares.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/compare.h"
#include "tests/kernels/every_target.h"

namespace adder::tests {
namespace {

template <typename T>
void compare(int64_t count, double scale) {
  const Buffer<T> x = normal_values<T>(count, scale, 1);
  double expected = 0;
  for (const T value : x) expected += static_cast<double>(value) * static_cast<double>(value);
  const double got = kernels::cpu::sum_of_squares(x.data(), count, 2);
  EXPECT_NEAR(got, expected, 1e-12 * expected) << count << " values of about " << scale;
}

TEST(SumOfSquares, AgreesWithTheReference) {
  on_every_target([] {
    for (const int64_t count : {0, 1, 3, 7, 8, 31, 32, 33, 100, 65535, 65536, 65537, 200003}) {
      compare<float>(count, 1);
      compare<double>(count, 1);
    }
    for (const double scale : {1e-30, 1e30}) compare<float>(1000, scale);
    for (const double scale : {1e-150, 1e150}) compare<double>(1000, scale);
  });
}

TEST(SumOfSquares, SameBitsForAnyNumberOfThreads) {
  const Buffer<float> x = normal_values<float>(1 << 20, 1, 2);
  const double one = kernels::cpu::sum_of_squares(x.data(), 1 << 20, 1);
  for (const int64_t threads : {2, 3, 7}) EXPECT_EQ(kernels::cpu::sum_of_squares(x.data(), 1 << 20, threads), one);
}

TEST(SumOfSquares, NaNAndInfinityStay) {
  on_every_target([] {
    for (const size_t place : {size_t{0}, size_t{64}, size_t{98}}) {
      std::vector<float> x(99, 1.0f);
      x[place] = std::numeric_limits<float>::infinity();
      EXPECT_EQ(kernels::cpu::sum_of_squares(x.data(), 99), std::numeric_limits<double>::infinity());
      x[place] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_TRUE(std::isnan(kernels::cpu::sum_of_squares(x.data(), 99)));
    }
  });
}

}  // namespace
}  // namespace adder::tests
