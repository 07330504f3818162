#include "adder/data/ordered_pipeline.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>

// Nothing here calls torch, so that the thread sanitizer sees all of it.
namespace adder::data {
namespace {

using namespace std::chrono_literals;

struct Job {
  int number = 0;
  std::vector<int> squares;
};
using Pipeline = OrderedPipeline<Job>;
using Give = std::function<void(Job&)>;

// Jobs 0 to end - 1.
auto count_to(int end) {
  return [end](const Give& give) {
    Job job;
    for (int i = 0; i < end; ++i) {
      job.number = i;
      job.squares.clear();
      give(job);
    }
  };
}
void square(Job& job) {
  if (job.number % 3 == 0) std::this_thread::sleep_for(100us);  // so that others overtake it
  job.squares.assign(50, job.number * job.number);
}

TEST(OrderedPipeline, KeepsTheOrder) {
  for (const int threads : {1, 2, 5}) {
    for (const int depth : {1, 2, 12}) {
      int taken = 0;
      Pipeline::run(threads, depth, {count_to(300), square, [&](Job& job) {
                                       EXPECT_EQ(job.number, taken);
                                       EXPECT_EQ(job.squares, std::vector<int>(50, taken * taken));
                                       ++taken;
                                     }});
      EXPECT_EQ(taken, 300);
    }
  }
}

TEST(OrderedPipeline, NoJobs) {
  Pipeline::run(3, 4, {count_to(0), square, [](Job&) { FAIL(); }});
}

TEST(OrderedPipeline, WorksOnSeveralAtOnce) {
  std::atomic<int> at_work = 0;
  const auto wait_for_two = [&](Job&) {
    ++at_work;
    while (at_work < 2) std::this_thread::yield();
  };
  Pipeline::run(2, 2, {count_to(2), wait_for_two, [](Job&) {}});
  EXPECT_EQ(at_work, 2);
}

TEST(OrderedPipeline, HeavyJobsGoAlone) {
  const auto weigh = [](const Job& job) { return job.number % 4 == 0 ? size_t{100} : size_t{3}; };
  std::atomic<size_t> on_the_way = 0;  // begun and not taken
  std::atomic<bool> too_much = false;
  const auto work = [&](Job& job) {
    if ((on_the_way += weigh(job)) > (job.number % 4 == 0 ? 100u : 10u)) too_much = true;
    square(job);
  };
  int taken = 0;
  const auto take = [&](Job& job) {
    on_the_way -= weigh(job);
    ++taken;
  };
  Pipeline::run(3, 8, {count_to(200), work, take, weigh}, 10);
  EXPECT_FALSE(too_much);
  EXPECT_EQ(taken, 200);
}

TEST(OrderedPipeline, NeverMoreThanDepthOnTheirWay) {
  std::atomic<int> given = 0;
  const auto make = [&](const Give& give) {
    for (Job job; job.number < 30; ++job.number) {
      Job copy = job;
      give(copy);
      ++given;
    }
  };
  int taken = 0;
  Pipeline::run(2, 3, {make, square, [&](Job&) {
                         std::this_thread::sleep_for(1ms);
                         EXPECT_LE(given, taken++ + 3);
                       }});
  EXPECT_EQ(taken, 30);
}

TEST(OrderedPipeline, OldJobsComeBack) {
  int with_memory = 0;
  const auto make = [&](const Give& give) {
    Job job;
    for (int i = 0; i < 20; ++i) {
      with_memory += job.squares.capacity() >= 50 ? 1 : 0;
      give(job);
    }
  };
  Pipeline::run(2, 4, {make, square, [](Job&) {}});
  EXPECT_EQ(with_memory, 20 - 5);
}

std::string error_of(int64_t threads, const Pipeline::Stages& stages) {
  try {
    Pipeline::run(threads, 4, stages);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST(OrderedPipeline, ErrorsComeAfterTheJobsBeforeThem) {
  for (const int threads : {1, 3}) {
    int taken = 0;
    const auto take = [&](Job& job) { EXPECT_EQ(job.number, taken++); };
    const auto make_ten = [](const Give& give) {
      count_to(10)(give);
      throw std::runtime_error("made ten");
    };
    EXPECT_EQ(error_of(threads, {make_ten, square, take}), "made ten");
    EXPECT_EQ(taken, 10);

    taken = 0;
    const auto fail_from_seven = [](Job& job) {
      if (job.number == 7) std::this_thread::sleep_for(2ms);  // the ninth fails before
      if (job.number >= 7) throw std::runtime_error("job " + std::to_string(job.number));
    };
    EXPECT_EQ(error_of(threads, {count_to(1000), fail_from_seven, take}), "job 7");
    EXPECT_EQ(taken, 7);

    taken = 0;
    const auto take_three = [&](Job&) {
      if (++taken == 3) throw std::runtime_error("took three");
    };
    EXPECT_EQ(error_of(threads, {count_to(1000), square, take_three}), "took three");
    EXPECT_EQ(taken, 3);

    const auto make_none = [](const Give&) { throw std::runtime_error("made none"); };
    EXPECT_EQ(error_of(threads, {make_none, square, take}), "made none");
  }
}

}  // namespace
}  // namespace adder::data
