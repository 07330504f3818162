#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace adder::data {

// The bytes of one or several files, one after another.
struct Text {
  // Where a file begins.
  struct File {
    std::filesystem::path path;  // as it was given
    int64_t begin = 0;           // where its first byte lies in `bytes`
  };
  std::string bytes;               // of all files
  std::vector<File> files;         // in order
  std::vector<int64_t> documents;  // where each document starts; rising, the first is 0
};

// Reads the files (see read_file) in this order. A document starts with each file and, where `separator` is not empty,
// after each separator inside it; the separator stays in the text, as the end of its document.
Text read_text(const std::vector<std::filesystem::path>& paths, std::string_view separator = {});

}  // namespace adder::data
