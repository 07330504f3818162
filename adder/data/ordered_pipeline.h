#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace adder::data {

// Jobs that pass three stages, all at work at once: one thread makes them, some work on them, and the calling thread
// takes them in the order in which they were made.
template <typename Job>
class OrderedPipeline {
 public:
  struct Stages {
    // Makes all jobs, on a thread of its own. give(job) waits for room, and leaves an old job in its place, whose
    // memory the next one may use.
    std::function<void(const std::function<void(Job&)>& give)> make;
    std::function<void(Job&)> work;
    std::function<void(Job&)> take;
    std::function<size_t(const Job&)> weight = [](const Job&) { return size_t{0}; };
  };

  // At most `threads` threads work, and `depth` jobs are on their way, of at most `weight` in all or a single one.
  // Returns, with all threads ended, once the last job was taken. What a stage throws is thrown here, after the jobs
  // before it were taken.
  static void run(int64_t threads, int64_t depth, const Stages& stages, size_t weight = 0) {
    OrderedPipeline pipeline(threads, depth, stages, weight);
    const StopAtEnd stop(pipeline);
    pipeline.maker_ = std::jthread([&] { pipeline.make(); });
    pipeline.take();
  }

 private:
  struct Slot {
    Job job;
    std::exception_ptr error;
    bool done = false;
    size_t weight = 0;
  };
  struct Stopped {};
  class StopAtEnd {
   public:
    explicit StopAtEnd(OrderedPipeline& pipeline) : pipeline_(pipeline) {}
    ~StopAtEnd() {
      {
        const std::lock_guard lock(pipeline_.mutex_);
        pipeline_.stopped_ = true;
      }
      pipeline_.room_.notify_all();
      pipeline_.given_or_ended_.notify_all();
    }
    StopAtEnd(const StopAtEnd&) = delete;
    StopAtEnd& operator=(const StopAtEnd&) = delete;

   private:
    OrderedPipeline& pipeline_;
  };

  OrderedPipeline(int64_t threads, int64_t depth, const Stages& stages, size_t weight)
      : threads_(static_cast<size_t>(threads)),
        most_weight_(weight),
        stages_(stages),
        slots_(static_cast<size_t>(depth)) {}

  Slot& slot(size_t number) { return slots_[number % slots_.size()]; }

  void make() {
    std::exception_ptr error;
    try {
      stages_.make([this](Job& job) { give(job); });
    } catch (const Stopped&) {
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      error_ = error;
      ended_ = true;
    }
    given_or_ended_.notify_all();
    done_.notify_one();
  }

  void give(Job& job) {
    // Before there is a job that would wait for ever should this fail.
    if (workers_.size() < threads_) workers_.emplace_back([this] { work(); });
    const size_t weight = stages_.weight(job);
    {
      std::unique_lock lock(mutex_);
      room_.wait(lock, [&] {
        return stopped_ || given_ == taken_ || (given_ - taken_ < slots_.size() && weight_ + weight <= most_weight_);
      });
      if (stopped_) throw Stopped();
      Slot& next = slot(given_);
      std::swap(next.job, job);
      next.done = false;
      next.weight = weight;
      weight_ += weight;
      ++given_;
    }
    given_or_ended_.notify_one();
  }

  void work() {
    for (std::unique_lock lock(mutex_);;) {
      given_or_ended_.wait(lock, [this] { return stopped_ || ended_ || begun_ < given_; });
      if (stopped_ || begun_ == given_) return;
      Slot& mine = slot(begun_++);
      lock.unlock();
      try {
        stages_.work(mine.job);
      } catch (...) {
        mine.error = std::current_exception();
      }
      lock.lock();
      mine.done = true;
      if (&mine == &slot(taken_)) done_.notify_one();
    }
  }

  void take() {
    for (std::unique_lock lock(mutex_);;) {
      done_.wait(lock, [this] { return taken_ < given_ ? slot(taken_).done : ended_; });
      if (taken_ == given_) break;
      Slot& first = slot(taken_);
      lock.unlock();
      if (first.error) std::rethrow_exception(first.error);
      stages_.take(first.job);
      lock.lock();
      weight_ -= first.weight;
      ++taken_;
      room_.notify_one();
    }
    if (error_) std::rethrow_exception(error_);
  }

  const size_t threads_, most_weight_;
  const Stages& stages_;
  std::mutex mutex_;
  std::condition_variable room_, given_or_ended_, done_;
  std::vector<Slot> slots_;
  size_t given_ = 0, begun_ = 0, taken_ = 0;  // how many jobs
  size_t weight_ = 0;                         // of those that are given and not taken
  bool ended_ = false;                        // no more are given
  bool stopped_ = false;
  std::exception_ptr error_;           // of the one who makes them
  std::vector<std::jthread> workers_;  // begun by maker_, as jobs come
  std::jthread maker_;
};

}  // namespace adder::data
