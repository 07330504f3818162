#include "adder/infer/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <string>

#include "adder/core/check.h"
#include "adder/core/options_io.h"
#include "adder/core/random.h"
#include "tests/error_of.h"

namespace adder::infer {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Tokens = std::vector<int64_t>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

Tokens tokens_of(const std::vector<float>& logits, const SamplingOptions& options, const Tokens& history = {}) {
  Tokens tokens;
  for (const Candidate& c : candidates(logits, options, history)) tokens.push_back(c.token);
  return tokens;
}

// Logits whose softmax is these probabilities.
std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}

// On a coarse grid, so that equal ones are common.
std::vector<float> random_logits(size_t count, uint64_t seed) {
  core::RandomStream random(seed, 0);
  std::vector<float> logits;
  for (size_t i = 0; i < count; ++i) logits.push_back(static_cast<float>(random.below(41)) * 0.25f - 5);
  return logits;
}

// The probability of every token by the documented steps, each the plainest way: sort all, then walk.
std::vector<double> brute_force(const std::vector<float>& logits, const SamplingOptions& o, const Tokens& history) {
  const size_t n = logits.size();
  std::vector<double> x(logits.begin(), logits.end());
  for (size_t i = 0; i < n; ++i)
    if (std::count(history.begin(), history.end(), static_cast<int64_t>(i)) > 0)
      x[i] = x[i] > 0 ? x[i] / o.repetition_penalty : x[i] * o.repetition_penalty;
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&x](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> result(n, 0.0);
  if (o.temperature == 0) {
    result[order[0]] = 1;
    return result;
  }
  if (o.top_k > 0 && o.top_k < static_cast<int64_t>(n)) order.resize(static_cast<size_t>(o.top_k));
  const auto softmax = [&] {
    std::vector<double> p;
    double sum = 0;
    for (const size_t i : order) p.push_back(std::exp(x[i] / o.temperature));
    for (const double v : p) sum += v;
    for (double& v : p) v /= sum;
    return p;
  };
  std::vector<double> p = softmax();
  if (o.top_p < 1) {
    size_t count = 0;
    for (double sum = 0; count < order.size() && (count == 0 || sum < o.top_p); ++count) sum += p[count];
    order.resize(count);
  }
  p = softmax();
  while (p.back() < o.min_p * p[0]) p.pop_back();
  order.resize(p.size());
  p = softmax();
  for (size_t i = 0; i < order.size(); ++i) result[order[i]] = p[i];
  return result;
}

void expect_brute_force(const std::vector<float>& logits, const SamplingOptions& options, const Tokens& history) {
  const std::vector<double> expected = brute_force(logits, options, history);
  std::vector<double> got(logits.size(), 0.0);
  for (const Candidate& c : candidates(logits, options, history)) got.at(static_cast<size_t>(c.token)) = c.probability;
  for (size_t i = 0; i < logits.size(); ++i)
    EXPECT_NEAR(got[i], expected[i], 1e-13) << "token " << i << " of\n" << core::to_toml(options);
}

TEST(Sampling, EachFilterEqualsBruteForce) {
  for (const size_t vocab : {1, 2, 3, 50, 257}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      SCOPED_TRACE(fmt::format("vocab {} seed {}", vocab, seed));
      const std::vector<float> logits = random_logits(vocab, seed);
      const Tokens history = {0, static_cast<int64_t>(vocab / 2), 0, static_cast<int64_t>(vocab - 1)};
      expect_brute_force(logits, {}, history);
      for (const double temperature : {0.0, 0.3, 2.0}) expect_brute_force(logits, {.temperature = temperature}, {});
      for (const int64_t k : {1, 2, 7, 49, 50, 1000}) expect_brute_force(logits, {.top_k = k}, {});
      for (const double p : {0.0, 0.1, 0.51, 0.93, 0.9999}) expect_brute_force(logits, {.top_p = p}, {});
      for (const double m : {0.01, 0.23, 0.9}) expect_brute_force(logits, {.min_p = m}, {});
      for (const double r : {0.7, 1.3, 5.0}) expect_brute_force(logits, {.repetition_penalty = r}, history);
      expect_brute_force(
          logits, {.temperature = 0.9, .top_k = 20, .top_p = 0.83, .min_p = 0.02, .repetition_penalty = 1.3}, history);
    }
  }
}

TEST(Sampling, TiesGoToTheLowerId) {
  const std::vector<float> logits = {1, 3, 2, 3, 3, 2};
  EXPECT_EQ(sample_token(logits, {.temperature = 0}, 0, 0, {}), 1);
  EXPECT_THAT(tokens_of(logits, {.top_k = 2}), ElementsAre(1, 3));
  EXPECT_THAT(tokens_of(logits, {.top_k = 4}), ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(tokens_of({0, 0, 0, 0}, {.top_p = 0.5}), ElementsAre(0, 1));
  EXPECT_THAT(tokens_of({0, 0, 0, 0}, {.top_p = 0.51}), ElementsAre(0, 1, 2));
}

TEST(Sampling, TheOrderOfTheFilters) {
  // top-p counts in what top-k left: 0.4 of 0.7 is enough, 0.4 of 1 is not.
  EXPECT_THAT(tokens_of(logits_of({0.3, 0.4, 0.2, 0.1}), {.top_k = 2, .top_p = 0.55}), ElementsAre(1));
  EXPECT_THAT(tokens_of(logits_of({0.3, 0.4, 0.2, 0.1}), {.top_p = 0.55}), ElementsAre(0, 1));
  // The temperature comes before top-p: sharpened, the first token has 0.64 / (0.64 + 0.04).
  EXPECT_THAT(tokens_of(logits_of({0.8, 0.2}), {.temperature = 0.5, .top_p = 0.9}), ElementsAre(0));
  EXPECT_THAT(tokens_of(logits_of({0.8, 0.2}), {.top_p = 0.9}), ElementsAre(0, 1));
  // The penalty comes before the greedy choice.
  EXPECT_EQ(sample_token(std::vector<float>{2, 1.5}, {.temperature = 0, .repetition_penalty = 2}, 0, 0, Tokens{0}), 1);
}

TEST(Sampling, PenaltyCountsATokenOnceAndPushesDownBothSigns) {
  const auto with = [](const Tokens& history) {
    return candidates(std::vector<float>{2, -2, 1}, {.repetition_penalty = 2}, history);
  };
  EXPECT_DOUBLE_EQ(with({1})[1].logit, -6);  // -4 below the largest, 2
  EXPECT_DOUBLE_EQ(with({1, 1, 1})[1].logit, -6);
  EXPECT_DOUBLE_EQ(with({0})[0].logit, 0);  // 1, now the largest with token 2
  EXPECT_DOUBLE_EQ(with({0})[2].logit, 0);
}

TEST(Sampling, ExtremeLogitsAndTemperatures) {
  EXPECT_THAT(tokens_of({-kInfinity, 0, -kInfinity, 1}, {}), ElementsAre(1, 3));
  EXPECT_THAT(tokens_of({-kInfinity, 0, -kInfinity, 1}, {.repetition_penalty = 3}, {0, 1}), ElementsAre(1, 3));
  EXPECT_THAT(tokens_of({3e38f, -3e38f, 1}, {}), ElementsAre(0));
  EXPECT_THAT(tokens_of({1, 1.5, 1.5}, {.temperature = 1e-300}), ElementsAre(1, 2));
  EXPECT_EQ(tokens_of({1, -3e38f}, {.temperature = 1e300}).size(), 2u);
}

// Chi-square of the counts against the probabilities, at most four standard deviations above its mean.
void expect_frequencies(const std::vector<float>& logits, const SamplingOptions& options, bool by_row) {
  constexpr int64_t kDraws = 40000;
  std::map<int64_t, int64_t> counts;
  for (int64_t i = 0; i < kDraws; ++i) ++counts[sample_token(logits, options, by_row ? i : 3, by_row ? 5 : i, {})];
  const std::vector<double> probabilities = brute_force(logits, options, {});
  double chi_square = 0;
  int64_t drawn = 0, possible = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (probabilities[i] == 0) continue;
    const double expected = probabilities[i] * kDraws;
    const auto count = counts[static_cast<int64_t>(i)];
    chi_square += (static_cast<double>(count) - expected) * (static_cast<double>(count) - expected) / expected;
    drawn += count;
    ++possible;
  }
  EXPECT_EQ(drawn, kDraws) << "a token of probability 0 was drawn";
  const auto freedom = static_cast<double>(possible - 1);
  EXPECT_LT(chi_square, freedom + 4 * std::sqrt(2 * freedom));
}

TEST(Sampling, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.5f, -1, 1.25f, 0, 0, -kInfinity, 2, -0.5f, 1};
  for (const bool by_row : {false, true})
    for (const int64_t seed : {0, 1, -7}) {
      expect_frequencies(logits, {.seed = seed}, by_row);
      expect_frequencies(logits, {.temperature = 1.7, .top_k = 6, .top_p = 0.9, .min_p = 0.1, .seed = seed}, by_row);
    }
}

TEST(Sampling, ADrawDependsOnSeedRowAndStepAlone) {
  const std::vector<float> logits = random_logits(100, 1);
  const auto draws = [&logits](int64_t seed, int64_t row) {
    Tokens tokens;
    for (int64_t step = 0; step < 50; ++step) tokens.push_back(sample_token(logits, {.seed = seed}, row, step, {}));
    return tokens;
  };
  EXPECT_EQ(draws(1, 2), draws(1, 2));
  EXPECT_NE(draws(1, 2), draws(2, 1));
  EXPECT_NE(draws(1, 2), draws(1, 3));
}

TEST(Sampling, Errors) {
  const auto error = [](const std::vector<float>& logits, const SamplingOptions& options = {},
                        const Tokens& history = {}) {
    return error_of([&] { sample_token(logits, options, 0, 0, history); });
  };
  for (const double temperature : {0.0, 1.0}) {
    const SamplingOptions options{.temperature = temperature};
    EXPECT_THAT(error({0, kNaN, 1}, options), HasSubstr("the logit of token 1 is nan"));
    EXPECT_THAT(error({0, 1, kInfinity}, options), HasSubstr("the logit of token 2 is inf"));
    EXPECT_THAT(error({-kInfinity, -kInfinity}, options), HasSubstr("none of the 2 logits is finite"));
    EXPECT_THAT(error({}, options), HasSubstr("none of the 0 logits is finite"));
  }
  EXPECT_THAT(error({0, 1}, {.repetition_penalty = 2}, {0, 2}),
              HasSubstr("token 2 at position 1 of the history is outside the vocabulary [0, 2)"));
  EXPECT_THAT(error({0, 1}, {.temperature = -1}), HasSubstr("sampling: temperature must be real >= 0, is -1"));
  EXPECT_THAT(error({0, 1}, {.temperature = kNaN}), HasSubstr("temperature must be real >= 0, is nan"));
  EXPECT_THAT(error({0, 1}, {.top_k = -1}), HasSubstr("top_k must be integer >= 0, is -1"));
  EXPECT_THAT(error({0, 1}, {.top_p = 1.5}), HasSubstr("top_p must be real in [0, 1], is 1.5"));
  EXPECT_THAT(error({0, 1}, {.min_p = -0.5}), HasSubstr("min_p must be real in [0, 1], is -0.5"));
  EXPECT_THAT(error({0, 1}, {.repetition_penalty = 0}), HasSubstr("repetition_penalty must be"));
}

TEST(SamplingOptions, StopTokensAreReadAndWrittenAsText) {
  SamplingOptions options;
  core::set_option(options, "stop_tokens=0,50256");
  EXPECT_THAT(options.stop_tokens, ElementsAre(0, 50256));
  SamplingOptions copy;
  core::read_toml_text(copy, core::to_toml(options), "copy");
  EXPECT_EQ(copy.stop_tokens, options.stop_tokens);
  EXPECT_THAT(error_of([&] { core::set_option(options, "stop_tokens=1,x"); }),
              HasSubstr("stop_tokens must be token ids, whole numbers from 0, got \"x\""));
  EXPECT_THAT(error_of([&] { core::set_option(options, "stop_tokens=-1"); }), HasSubstr("got \"-1\""));
  EXPECT_THAT(options.stop_tokens, ElementsAre(0, 50256));
}

}  // namespace
}  // namespace adder::infer
