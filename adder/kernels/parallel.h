#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>

namespace adder::kernels {

// 0: as many as OpenMP would use.
inline int64_t thread_count(int64_t threads) {
  return threads > 0 ? threads : omp_get_max_threads();
}

// Calls body(item, thread) for each item in [0, items), on up to thread_count(threads) threads.
// Which thread runs an item must not matter for the result. An exception of a body is thrown to the caller after all
// threads have ended.
template <typename Body>
void parallel_items(int64_t items, int64_t threads, const Body& body) {
  threads = thread_count(threads);
  if (threads <= 1 || items <= 1 || omp_in_parallel()) {
    for (int64_t item = 0; item < items; ++item) body(item, int64_t{0});
    return;
  }
  std::exception_ptr error;
  std::mutex error_mutex;
  // All threads, also where items are fewer: libgomp ends the threads that a smaller team leaves out and starts them
  // anew for the next one.
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(threads))
  for (int64_t item = 0; item < items; ++item) {
    try {
      body(item, static_cast<int64_t>(omp_get_thread_num()));
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace adder::kernels
