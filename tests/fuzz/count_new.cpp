#include <malloc.h>

#include <cstdlib>
#include <new>

#include "tests/fuzz/fuzz.h"

void* operator new(size_t bytes) {
  void* place = std::malloc(bytes);
  if (!place) throw std::bad_alloc();
  adder::fuzz::count_allocation(::malloc_usable_size(place));
  return place;
}

void operator delete(void* place) noexcept {
  adder::fuzz::count_free(::malloc_usable_size(place));
  std::free(place);
}

void operator delete(void* place, size_t) noexcept {
  operator delete(place);
}
