#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adder/core/error.h"

// What the fuzz targets share. A target is one file that defines LLVMFuzzerTestOneInput; docs/fuzzing.md says how they
// are built and run.
namespace adder::fuzz {

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// What stands between two files in an input that is a folder: a line of its own, so that what is put into one file
// leaves the others alone.
inline constexpr std::string_view kBetweenFiles = "\n====\n";

std::vector<std::string_view> parts_of(std::string_view input);
// The same where each part begins with a line that names it.
std::vector<std::pair<std::string, std::string>> named_parts(std::string_view input);

// A safetensors file of a part that begins with '{': its first line is the header, which gets its length; others stay.
std::string with_header_length(std::string_view part);

// A folder in memory, one a process, that holds what was written last.
class Folder {
 public:
  Folder();
  ~Folder();
  const std::filesystem::path& path() const { return path_; }
  // All files but those named here are removed.
  void write(const std::map<std::string, std::string>& files);

 private:
  std::filesystem::path path_;
  std::map<std::string, std::string> files_;
};

// How many bytes a reader may take for a file of n bytes: `per_byte` n + `base` at once, and 20 times that in all,
// which bounds its time too.
struct MemoryBound {
  size_t per_byte;
  size_t base;
};

// From its construction on counts what is allocated, and aborts where the bound is passed.
class MemoryCheck {
 public:
  MemoryCheck(size_t file_size, MemoryBound bound);
  ~MemoryCheck();
};
// What tells it of allocations where no sanitizer does.
void count_allocation(size_t bytes);
void count_free(size_t bytes);

// Calls `read`, which may throw adder::Error and nothing else, within the bound.
template <typename Read>
bool reads(size_t file_size, MemoryBound bound, Read&& read) {
  const MemoryCheck check(file_size, bound);
  try {
    read();
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace adder::fuzz
