#include "adder/kernels/softmax_rows.h"

#include <gtest/gtest.h>

#include "adder/kernels/softmax_rows_ref.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/every_target.h"
#ifdef ADDER_CUDA
#include "adder/kernels/softmax_rows_cuda.h"
#endif

namespace adder::tests {
namespace {

using kernels::bfloat16;
constexpr int64_t kIgnore = -7;

template <typename T>
struct Problem {
  using R = kernels::Accumulator<T>;
  int64_t rows, vocab;
  Buffer<T> logits;
  Buffer<int64_t> targets, predictions;
  Buffer<R> losses;

  Problem(int64_t rows_, int64_t vocab_, double scale = 3) : rows(rows_), vocab(vocab_) {
    logits = normal_values<T>(rows * vocab, scale, 1);
    for (int64_t r = 0; r < rows; ++r) targets.push_back(r % 4 == 3 ? kIgnore : (r * 31 + 5) % vocab);
    predictions.assign(rows, -1);
    losses = nan_values<R>(rows);
  }

  void run(bool gradient, R scale = 1, int64_t threads = 2) {
    kernels::SoftmaxRows<T> p;
    p.rows = rows;
    p.vocab = vocab;
    p.logits = logits.data();
    p.targets = targets.data();
    p.ignore_index = kIgnore;
    p.write_gradient = gradient;
    p.scale = scale;
    p.losses = losses.data();
    p.predictions = predictions.data();
    p.threads = threads;
    run_kernel_on_device(p, kernels::cpu::softmax_rows<T>,
                         ADDER_ON_CUDA(kernels::cuda::softmax_rows(on_cuda, nullptr)));
  }
};

// Losses and gradients against the reference; exp and the sum cost a few units in the last place of 1.
template <typename T>
void compare(int64_t rows, int64_t vocab, double logit_scale = 3) {
  Problem<T> problem(rows, vocab, logit_scale), unchanged(rows, vocab, logit_scale);
  unchanged.run(false);
  EXPECT_TRUE(same_bits(unchanged.logits, problem.logits));
  std::vector<double> losses, gradients;
  const std::vector<double> logits = doubles(problem.logits);
  for (int64_t r = 0; r < rows; ++r) {
    const std::vector<double> row(logits.begin() + r * vocab, logits.begin() + (r + 1) * vocab);
    const auto expected = kernels::reference::softmax_row(row, problem.targets[r], kIgnore, 0.125);
    losses.push_back(expected.loss);
    gradients.insert(gradients.end(), expected.gradient.begin(), expected.gradient.end());
    EXPECT_EQ(unchanged.predictions[r], expected.prediction) << "row " << r;
  }
  problem.run(true, 0.125);
  EXPECT_EQ(problem.predictions, unchanged.predictions);
  EXPECT_TRUE(same_bits(problem.losses, unchanged.losses));
  expect_near("losses", problem.losses, losses, forward_tolerance<kernels::Accumulator<T>>());
  expect_near("gradient", problem.logits, gradients, backward_tolerance<T>());
}

TEST(SoftmaxRows, AgreesWithTheReference) {
  for_each_device([&] {
    for (const int64_t vocab : {1, 2, 15, 16, 17, 31, 32, 33, 100, 1023, 1025, 4099}) {
      SCOPED_TRACE(vocab);
      compare<float>(9, vocab);
      compare<double>(9, vocab);
      compare<bfloat16>(9, vocab);
      compare<kernels::float16>(9, vocab);
    }
  });
}

TEST(SoftmaxRows, EveryInstructionSet) {
  on_every_target([] {
    for (const int64_t vocab : {1, 16, 33, 1025}) {
      compare<float>(9, vocab);
      compare<double>(9, vocab);
      compare<bfloat16>(9, vocab);
      compare<kernels::float16>(9, vocab);
    }
  });
}

TEST(SoftmaxRows, NoRows) {
  for_each_device([&] { compare<float>(0, 10); });
}

TEST(SoftmaxRows, ManySmallRows) {
  for_each_device([&] { compare<float>(5000, 11); });
}

TEST(SoftmaxRows, WideVocabularyAndSharpRows) {
  for_each_device([&] {
    compare<float>(4, 50280);
    compare<float>(8, 300, 100);
    compare<bfloat16>(8, 300, 100);
    compare<kernels::float16>(8, 300, 100);
    compare<bfloat16>(400, 4104);
    compare<bfloat16>(5, 50280);
    compare<bfloat16>(4, 32000, 100);
    compare<kernels::float16>(4, 57344);
  });
}

TEST(SoftmaxRows, SameBitsForAnyNumberOfThreads) {
  for_each_device([&] {
    Problem<float> one(300, 777);
    one.run(true, 0.5f, 1);
    for (const int64_t threads : {1, 2, 3}) {
      Problem<float> many(300, 777);
      many.run(true, 0.5f, threads);
      EXPECT_TRUE(same_bits(one.logits, many.logits) && same_bits(one.losses, many.losses)) << threads;
    }
  });
}

template <typename T>
void expect_first_of_equals(int64_t vocab) {
  Problem<T> problem(1, vocab);
  std::fill(problem.logits.begin(), problem.logits.end(), kernels::from_float<T>(-1.0f));
  problem.run(false);
  EXPECT_EQ(problem.predictions[0], 0);
  problem.logits[vocab - 1] = problem.logits[vocab - 2] = kernels::from_float<T>(4.0f);
  problem.run(false);
  EXPECT_EQ(problem.predictions[0], vocab - 2);
}

TEST(SoftmaxRows, FirstOfEqualLogitsIsPredicted) {
  for_each_device([&] {
    for (const int64_t vocab : {3, 40, 2000, 8000}) {
      expect_first_of_equals<float>(vocab);
      expect_first_of_equals<bfloat16>(vocab);
    }
  });
}

template <typename T>
void expect_nonfinite_stays_in_its_row(int64_t vocab) {
  SCOPED_TRACE(vocab);
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
    for (const int64_t place : {int64_t{0}, vocab / 2, vocab - 1}) {
      Problem<T> problem(3, vocab);
      problem.logits[vocab + place] = kernels::from_float<T>(bad);
      problem.run(true);
      EXPECT_TRUE(std::isnan(problem.losses[1]));
      EXPECT_EQ(problem.predictions[1], place);
      const std::vector<double> gradients = doubles(problem.logits);
      for (int64_t i = vocab; i < 2 * vocab; ++i) ASSERT_TRUE(std::isnan(gradients[i])) << i;
      EXPECT_TRUE(std::isfinite(problem.losses[0]) && std::isfinite(problem.losses[2]));
      EXPECT_TRUE(std::isfinite(gradients[vocab - 1]) && std::isfinite(gradients[2 * vocab]));
    }
}

TEST(SoftmaxRows, NanAndInfinityStayVisibleInTheirRow) {
  const auto all = [] {
    expect_nonfinite_stays_in_its_row<float>(37);
    expect_nonfinite_stays_in_its_row<bfloat16>(300);
    expect_nonfinite_stays_in_its_row<bfloat16>(5000);
  };
  for_each_device(all);
  on_every_target(all);
}

TEST(SoftmaxRows, MinusInfinityIsAProbabilityOfZero) {
  for_each_device([&] {
    const float inf = std::numeric_limits<float>::infinity();
    Problem<float> problem(2, 37);
    for (float& x : problem.logits) x = -inf;
    problem.logits[5] = problem.logits[6] = problem.logits[37 + 3] = 2;
    problem.targets = {5, 9};
    problem.run(true);
    EXPECT_NEAR(problem.losses[0], std::log(2.0f), 1e-6f);
    EXPECT_EQ(problem.losses[1], inf);
    EXPECT_EQ(problem.logits[0], 0);
    EXPECT_NEAR(problem.logits[5], -0.5f, 1e-6f);
    EXPECT_NEAR(problem.logits[6], 0.5f, 1e-6f);
    EXPECT_EQ(problem.logits[37 + 9], -1);
  });
}

}  // namespace
}  // namespace adder::tests
