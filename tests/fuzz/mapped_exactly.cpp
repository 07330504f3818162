#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

// A mapped file ends in a page of zeros that AddressSanitizer takes for a part of it. Here files are "mapped" into
// memory of just their size (the linker's --wrap leads mmap and munmap to these).
extern "C" {
void* __real_mmap(void* place, size_t size, int protection, int flags, int file, off_t from);
int __real_munmap(void* place, size_t size);

static std::vector<void*> files_in_memory;

void* __wrap_mmap(void* place, size_t size, int protection, int flags, int file, off_t from) {
  if (file < 0 || from != 0 || (protection & PROT_WRITE) != 0)
    return __real_mmap(place, size, protection, flags, file, from);
  char* bytes = static_cast<char*>(std::malloc(size));
  if (!bytes || ::pread(file, bytes, size, 0) != static_cast<ssize_t>(size)) std::abort();
  files_in_memory.push_back(bytes);
  return bytes;
}

int __wrap_munmap(void* place, size_t size) {
  const auto found = std::find(files_in_memory.begin(), files_in_memory.end(), place);
  if (found == files_in_memory.end()) return __real_munmap(place, size);
  files_in_memory.erase(found);
  std::free(place);
  return 0;
}
}
