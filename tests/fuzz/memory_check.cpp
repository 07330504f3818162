#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/fuzz.h"

// A sanitizer tells of every allocation; without one count_new.cpp does, of those by operator new.
extern "C" {
[[gnu::weak]] int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                            void (*)(const volatile void*));
[[gnu::weak]] size_t __sanitizer_get_allocated_size(const volatile void*);
}

namespace adder::fuzz {
namespace {

constexpr size_t kTimesInAll = 20;
constexpr size_t kTelling = 1000;  // the least size of a file whose share is worth telling

bool counting = false;
MemoryBound bound{};
size_t file_size = 0, at_most = 0;
int64_t live = 0, peak = 0;  // `live` falls below 0 where what was allocated before is freed
size_t in_all = 0;
double most_per_byte = 0;

void on_malloc(const volatile void*, size_t bytes) {
  count_allocation(bytes);
}

void on_free(const volatile void* place) {
  if (counting && place) count_free(__sanitizer_get_allocated_size(place));
}

void report() {
  std::fprintf(stderr, "memory: at most %.1f bytes for each byte of a file of %zu bytes or more\n", most_per_byte,
               kTelling);
}

}  // namespace

void count_allocation(size_t bytes) {
  if (!counting) return;
  live += static_cast<int64_t>(bytes);
  in_all += bytes;
  peak = std::max(peak, live);
  if (live <= static_cast<int64_t>(at_most) && in_all <= kTimesInAll * at_most) return;
  counting = false;
  std::fprintf(stderr, "for a file of %zu bytes at most %zu bytes may be held, %zu allocated in all; got %ld and %zu\n",
               file_size, at_most, kTimesInAll * at_most, static_cast<long>(live), in_all);
  std::abort();
}

void count_free(size_t bytes) {
  if (counting) live -= static_cast<int64_t>(bytes);
}

MemoryCheck::MemoryCheck(size_t size, MemoryBound chosen) {
  static const bool once = [] {
    if (__sanitizer_install_malloc_and_free_hooks) __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    return std::atexit(report) == 0;
  }();
  (void)once;
  bound = chosen, file_size = size, at_most = bound.per_byte * size + bound.base;
  live = peak = 0, in_all = 0;
  counting = true;
}

MemoryCheck::~MemoryCheck() {
  counting = false;
  if (file_size >= kTelling)
    most_per_byte = std::max(most_per_byte, static_cast<double>(peak) / static_cast<double>(file_size));
}

}  // namespace adder::fuzz
