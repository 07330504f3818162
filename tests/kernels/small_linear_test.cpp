#include "adder/kernels/small_linear.h"

#include <gtest/gtest.h>

#include "adder/kernels/small_linear_ref.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/every_target.h"
#ifdef ADDER_CUDA
#include "adder/kernels/small_linear_cuda.h"
#endif

namespace adder::tests {
namespace {

using kernels::bfloat16;
using kernels::float16;

template <typename X, typename W>
struct Problem {
  using R = kernels::Accumulator<X>;
  int64_t rows, in, out;
  Buffer<X> x, y;
  Buffer<W> weight;
  Buffer<R> bias;

  Problem(int64_t rows_, int64_t in_, int64_t out_) : rows(rows_), in(in_), out(out_) {
    x = normal_values<X>(rows * in, 1, 1);
    weight = normal_values<W>(out * in, 1, 2);
    bias = normal_values<R>(out, 1, 3);
    y = nan_values<X>(rows * out);
  }

  void run(bool with_bias = true, int64_t threads = 2) {
    kernels::SmallLinear<X, W> p;
    p.rows = rows;
    p.in = in;
    p.out = out;
    p.x = x.data();
    p.weight = weight.data();
    p.bias = with_bias ? bias.data() : nullptr;
    p.y = y.data();
    p.threads = threads;
    run_kernel_on_device(p, kernels::cpu::small_linear<X, W>,
                         ADDER_ON_CUDA(kernels::cuda::small_linear(on_cuda, nullptr)));
  }
};

template <typename X, typename W>
void compare(int64_t rows, int64_t in, int64_t out, bool with_bias = true) {
  Problem<X, W> problem(rows, in, out);
  problem.run(with_bias);
  const auto expected = kernels::reference::small_linear(rows, in, out, doubles(problem.x), doubles(problem.weight),
                                                         with_bias ? doubles(problem.bias) : std::vector<double>());
  expect_near("y", problem.y, expected, forward_tolerance<X>());
}

void compare_all(int64_t rows, int64_t in, int64_t out) {
  SCOPED_TRACE(testing::Message() << "rows " << rows << " in " << in << " out " << out);
  compare<float, float>(rows, in, out);
  compare<float, bfloat16>(rows, in, out);
  compare<float, float16>(rows, in, out);
  compare<bfloat16, bfloat16>(rows, in, out);
  compare<float16, float16>(rows, in, out);
  compare<double, double>(rows, in, out);
}

TEST(SmallLinear, AgreesWithTheReference) {
  for_each_device([&] {
    for (int64_t rows = 0; rows <= kernels::kSmallLinearRows; ++rows) compare_all(rows, 70, 37);
    for (const int64_t rows : {9, 15, 16, 17, 70}) compare_all(rows, 70, 37);
    for (const int64_t in : {0, 1, 7, 8, 15, 16, 17, 31, 32, 33, 64, 768, 1537}) compare_all(3, in, 20);
    for (const int64_t out : {0, 1, 2, 7, 8, 9, 15, 1000}) compare_all(2, 48, out);
    compare<float, float>(4, 70, 37, false);
    compare<bfloat16, bfloat16>(1, 768, 9000, false);
  });
}

TEST(SmallLinear, EveryInstructionSet) {
  on_every_target([] {
    for (int64_t rows = 1; rows <= kernels::kSmallLinearRows; ++rows) compare_all(rows, 70, 37);
  });
}

template <typename X, typename W>
void expect_rows_alone(int64_t in, int64_t out) {
  Problem<X, W> all(37, in, out);
  all.run(true, 1);
  for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 23, 36})
    for (const int64_t threads : {1, 2, 3}) {
      Problem<X, W> few(rows, in, out);  // the first rows of `all`
      few.run(true, threads);
      EXPECT_TRUE(same_bits(few.y, Buffer<X>(all.y.begin(), all.y.begin() + rows * out))) << rows << " " << threads;
    }
}

TEST(SmallLinear, ARowDependsNeitherOnTheOthersNorOnThreads) {
  for_each_device([&] {
    expect_rows_alone<float, float>(300, 501);
    expect_rows_alone<float, bfloat16>(300, 501);
    expect_rows_alone<bfloat16, bfloat16>(301, 1003);
    expect_rows_alone<double, double>(47, 800);
  });
}

TEST(SmallLinear, InfiniteAndNanInputsStayVisible) {
  for_each_device([&] {
    const float inf = std::numeric_limits<float>::infinity();
    for (const float bad : {inf, -inf, std::nanf("")})
      for (const int64_t place : {0, 36}) {
        Problem<float, float> problem(2, 37, 5);
        problem.x[place] = bad;
        problem.run();
        for (int64_t o = 0; o < 5; ++o) {
          EXPECT_FALSE(std::isfinite(problem.y[o]));
          EXPECT_TRUE(std::isfinite(problem.y[5 + o]));
        }
        Problem<float, bfloat16> weights(2, 37, 5);
        weights.weight[2 * 37 + place] = kernels::from_float<bfloat16>(bad);
        weights.run();
        for (int64_t o = 0; o < 5; ++o) EXPECT_EQ(std::isfinite(weights.y[5 + o]), o != 2);
      }
  });
}

}  // namespace
}  // namespace adder::tests
