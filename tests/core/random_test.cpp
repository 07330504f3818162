#include "adder/core/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <vector>

#include "adder/core/error.h"

namespace adder::core {
namespace {

using Words = std::array<uint32_t, 4>;

// The known answers that the authors publish with Random123.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Random, WordsOfSeedStreamAndCounterEnterTheBlock) {
  EXPECT_EQ(random_bits(0, 0, 0), 0xe169c58d6627e8d5u);
  EXPECT_EQ(random_bits(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88), 0x94fdccebd16cfe09u);
}

TEST(Random, EveryBitOfTheAddressMatters) {
  std::set<uint64_t> seen{random_bits(0, 0, 0)};
  for (int bit = 0; bit < 64; ++bit) {
    const uint64_t one = uint64_t{1} << bit;
    EXPECT_TRUE(seen.insert(random_bits(one, 0, 0)).second);
    EXPECT_TRUE(seen.insert(random_bits(0, one, 0)).second);
    EXPECT_TRUE(seen.insert(random_bits(0, 0, one)).second);
  }
}

TEST(Random, DerivedSeedsDiffer) {
  EXPECT_NE(derive_seed(1, "a"), derive_seed(1, "b"));
  EXPECT_NE(derive_seed(1, "a"), derive_seed(2, "a"));
  EXPECT_EQ(derive_seed(1, "a"), derive_seed(1, "a"));
  // XXH64 of nothing with seed 0: saved runs depend on it.
  EXPECT_EQ(derive_seed(0, ""), 0xef46db3751d8e999u);
}

TEST(Random, BelowReachesEveryValueEvenly) {
  for (const uint64_t n : {uint64_t{1}, uint64_t{2}, uint64_t{3}, uint64_t{7}, uint64_t{10}}) {
    std::vector<int> count(n);
    constexpr int kDraws = 20000;
    for (int i = 0; i < kDraws; ++i) ++count.at(random_below(n, 5, 6, i));
    const double mean = static_cast<double>(kDraws) / static_cast<double>(n);
    for (const int c : count) EXPECT_NEAR(c, mean, 5 * std::sqrt(mean)) << n;
  }
  EXPECT_LT(random_below(~uint64_t{0}, 1, 2, 3), ~uint64_t{0});
  EXPECT_THROW(random_below(0, 1, 2, 3), Error);
}

TEST(Random, UnitIsUniform) {
  double sum = 0;
  double squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random_unit(9, 1, i);
    ASSERT_GE(x, 0.0);
    ASSERT_LT(x, 1.0);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 1.0 / 2, 0.01);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.01);
}

TEST(Random, StreamFollowsTheCounter) {
  RandomStream stream(3, 4);
  EXPECT_EQ(stream(), random_bits(3, 4, 0));
  EXPECT_EQ(stream.below(100), random_below(100, 3, 4, 1));
  EXPECT_EQ(stream.unit(), random_unit(3, 4, 2));
  std::vector<int> values(50);
  std::iota(values.begin(), values.end(), 0);
  std::shuffle(values.begin(), values.end(), stream);
  EXPECT_FALSE(std::is_sorted(values.begin(), values.end()));
}

TEST(Permutation, HoldsEachElementOnce) {
  for (const uint64_t n : {1, 2, 3, 4, 5, 63, 64, 65, 255, 256, 257, 1000, 4097}) {
    const Permutation permutation(n, 1, 2);
    std::vector<bool> seen(n);
    for (uint64_t i = 0; i < n; ++i) {
      const uint64_t element = permutation(i);
      ASSERT_LT(element, n);
      ASSERT_FALSE(seen[element]) << n;
      seen[element] = true;
    }
  }
}

TEST(Permutation, OrdersAreEquallyFrequent) {
  std::map<std::vector<uint64_t>, int> orders;
  constexpr int kKeys = 24000;
  for (int key = 0; key < kKeys; ++key) {
    const Permutation permutation(4, 11, key);
    ++orders[{permutation(0), permutation(1), permutation(2), permutation(3)}];
  }
  EXPECT_EQ(orders.size(), 24u);
  for (const auto& [order, count] : orders) EXPECT_NEAR(count, 1000, 160);
}

TEST(Permutation, SeedAndStreamChangeTheOrder) {
  const auto order = [](uint64_t seed, uint64_t stream) {
    std::vector<uint64_t> values;
    for (uint64_t i = 0; i < 100; ++i) values.push_back(Permutation(100, seed, stream)(i));
    return values;
  };
  EXPECT_EQ(order(1, 1), order(1, 1));
  EXPECT_NE(order(1, 1), order(2, 1));
  EXPECT_NE(order(1, 1), order(1, 2));
}

TEST(Permutation, HugeSizes) {
  const uint64_t n = uint64_t{1} << 63;
  const Permutation permutation(n, 1, 1);
  EXPECT_LT(permutation(n - 1), n);
  EXPECT_NE(permutation(0), permutation(n - 1));
}

TEST(Permutation, ErrorsNameTheRule) {
  EXPECT_THROW(Permutation(0, 1, 1), Error);
  EXPECT_THROW(Permutation((uint64_t{1} << 63) + 1, 1, 1), Error);
  try {
    Permutation(3, 1, 1)(3);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "Permutation: place must be below 3, got 3");
  }
}

}  // namespace
}  // namespace adder::core
