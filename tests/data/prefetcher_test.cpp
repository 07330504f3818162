#include "adder/data/prefetcher.h"

#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

// Nothing here calls torch, so that the thread sanitizer sees all of it.
namespace adder::data {
namespace {

using namespace std::chrono_literals;

// Counts up to `end`; not synchronised, as a sampler is not.
struct Counter {
  int next = 0;
  int end;
  std::optional<std::vector<int>> operator()() {
    if (next == end) return std::nullopt;
    ++next;
    return std::vector<int>(50, next - 1);
  }
};

TEST(Prefetcher, KeepsTheOrderAndEnds) {
  for (const int64_t depth : {1, 2, 7, 1000}) {
    Counter counter{.end = 300};
    Prefetcher<std::vector<int>> prefetcher([&] { return counter(); }, depth);
    for (int i = 0; i < 300; ++i) {
      const auto item = prefetcher.next();
      ASSERT_TRUE(item);
      EXPECT_EQ(*item, std::vector<int>(50, i));
    }
    EXPECT_FALSE(prefetcher.next());
    EXPECT_FALSE(prefetcher.next());
  }
}

TEST(Prefetcher, EmptyRow) {
  Prefetcher<int> prefetcher([]() -> std::optional<int> { return std::nullopt; }, 2);
  EXPECT_FALSE(prefetcher.next());
}

TEST(Prefetcher, NeverMoreThanDepthAhead) {
  std::atomic<int> made = 0;
  Prefetcher<int> prefetcher([&]() -> std::optional<int> { return made++; }, 3);
  for (int used = 0; used < 20; ++used) {
    while (made < used + 3) std::this_thread::sleep_for(1ms);
    std::this_thread::sleep_for(2ms);
    EXPECT_EQ(made, used + 3);
    EXPECT_EQ(prefetcher.next(), used);
  }
}

TEST(Prefetcher, ItemsThatOnlyMove) {
  int value = 0;
  Prefetcher<std::unique_ptr<int>> prefetcher(
      [&]() -> std::optional<std::unique_ptr<int>> { return std::make_unique<int>(value++); }, 2);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(**prefetcher.next(), i);
}

TEST(Prefetcher, ErrorsComeAfterTheItemsBeforeThem) {
  for (const int64_t depth : {1, 10}) {
    int value = 0;
    Prefetcher<int> prefetcher(
        [&]() -> std::optional<int> {
          if (value == 3) throw std::runtime_error("the fourth is broken");
          return value++;
        },
        depth);
    for (int i = 0; i < 3; ++i) EXPECT_EQ(prefetcher.next(), i);
    for (int again = 0; again < 2; ++again) {
      try {
        prefetcher.next();
        FAIL();
      } catch (const std::runtime_error& error) {
        EXPECT_STREQ(error.what(), "the fourth is broken");
      }
    }
  }
}

TEST(Prefetcher, ErrorThatNobodyFetches) {
  Prefetcher<int> prefetcher([]() -> std::optional<int> { throw std::runtime_error("unseen"); }, 1);
}

TEST(Prefetcher, StopsAtAnyMoment) {
  for (int used = 0; used < 200; ++used) {
    Counter counter{.end = 1'000'000};
    Prefetcher<std::vector<int>> prefetcher([&] { return counter(); }, 1 + used % 4);
    for (int i = 0; i < used % 7; ++i) prefetcher.next();
    if (used % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(used));
  }
}

TEST(Prefetcher, StopsWhileAnItemIsMade) {
  std::atomic<bool> inside = false;
  std::atomic<bool> done = false;
  {
    Prefetcher<int> prefetcher(
        [&]() -> std::optional<int> {
          inside = true;
          std::this_thread::sleep_for(30ms);
          done = true;
          return 1;
        },
        4);
    while (!inside) std::this_thread::sleep_for(1ms);
  }
  EXPECT_TRUE(done);
}

double processor_seconds() {
  timespec time = {};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(Prefetcher, WaitsWithoutWork) {
  Prefetcher<int> full([]() -> std::optional<int> { return 1; }, 2);
  Prefetcher<int> slow(
      []() -> std::optional<int> {
        std::this_thread::sleep_for(300ms);
        return 1;
      },
      1);
  const double before = processor_seconds();
  slow.next();
  EXPECT_LT(processor_seconds() - before, 0.1);
}

TEST(Prefetcher, DepthMustBePositive) {
  try {
    Prefetcher<int>([]() -> std::optional<int> { return 1; }, 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "prefetcher: depth must be at least 1, got 0");
  }
}

}  // namespace
}  // namespace adder::data
