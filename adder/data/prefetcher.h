#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "adder/core/error.h"

namespace adder::data {

// Makes items on a thread of its own, up to `depth` ahead of their use, in the order in which `produce` gives them.
// `produce` runs on that thread alone, one call at a time; nothing (nullopt) from it ends the row.
template <typename T>
class Prefetcher {
 public:
  // Throws adder::Error where depth is below 1.
  Prefetcher(std::function<std::optional<T>()> produce, int64_t depth) : produce_(std::move(produce)), depth_(depth) {
    if (depth < 1) throw Error("prefetcher: depth must be at least 1, got " + std::to_string(depth));
    thread_ = std::thread([this] { run(); });
  }
  // Waits for a call of `produce` that is under way; what was made ahead is dropped.
  ~Prefetcher() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    room_.notify_one();
    thread_.join();
  }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // The next item; nothing once the row has ended. What `produce` threw is thrown here, after the items before it, and
  // by each call from then on.
  std::optional<T> next() {
    std::unique_lock lock(mutex_);
    filled_.wait(lock, [this] { return !ready_.empty() || ended_; });
    if (ready_.empty()) {
      if (error_) std::rethrow_exception(error_);
      return std::nullopt;
    }
    std::optional<T> item = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    room_.notify_one();
    return item;
  }

 private:
  struct Made {
    std::optional<T> item;
    std::exception_ptr error;
  };

  // Not `item = produce_()` inside a try block: gcc 12 drops the initial "no item" there, and a throw leaves an item of
  // garbage.
  Made make() const {
    try {
      return {produce_(), nullptr};
    } catch (...) {
      return {std::nullopt, std::current_exception()};
    }
  }

  void run() {
    for (bool last = false; !last;) {
      {
        std::unique_lock lock(mutex_);
        room_.wait(lock, [this] { return stop_ || static_cast<int64_t>(ready_.size()) < depth_; });
        if (stop_) return;
      }
      Made made = make();
      last = !made.item;
      {
        const std::lock_guard lock(mutex_);
        if (made.item) ready_.push_back(std::move(*made.item));
        error_ = std::move(made.error);
        ended_ = last;
      }
      filled_.notify_all();
    }
  }

  const std::function<std::optional<T>()> produce_;
  const int64_t depth_;
  std::mutex mutex_;
  std::condition_variable filled_;
  std::condition_variable room_;
  std::deque<T> ready_;
  std::exception_ptr error_;
  bool ended_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace adder::data
