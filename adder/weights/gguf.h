#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "adder/core/files.h"

// The container of llama.cpp's models: GGUF version 3, little-endian.
namespace adder::weights {

// A value of the metadata. Arrays of arrays, which llama.cpp refuses too, are left out.
using GgufValue =
    std::variant<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t, float, double, bool,
                 std::string, std::vector<uint8_t>, std::vector<int8_t>, std::vector<uint16_t>, std::vector<int16_t>,
                 std::vector<uint32_t>, std::vector<int32_t>, std::vector<uint64_t>, std::vector<int64_t>,
                 std::vector<float>, std::vector<double>, std::vector<bool>, std::vector<std::string>>;
// Keys and their values, in the order of the file.
using GgufMetadata = std::vector<std::pair<std::string, GgufValue>>;

// A tensor of any device, strides and type, to be written as `type`: float32, float16 or bfloat16.
struct GgufTensor {
  std::string name;                  // 1 to 63 bytes
  at::Tensor values;                 // at most 4 dimensions
  at::ScalarType type = at::kFloat;  // in the file
};

// Writes a file at once (core::write_file_atomically), keys and tensors in the order given, converting one tensor after
// the other. A finite value that `type` can not hold is an error.
void write_gguf_file(const std::filesystem::path& path, const GgufMetadata& metadata,
                     const std::vector<GgufTensor>& tensors);

// A GGUF file of unquantised tensors, memory-mapped. Opening checks everything before the data, so that whatever opens
// lies within the file; errors name the file, the thing and the byte position.
class GgufFile {
 public:
  // Throws adder::Error where it is no valid GGUF file.
  explicit GgufFile(const std::filesystem::path& path);

  const GgufMetadata& metadata() const { return metadata_; }  // all of it
  // nullptr where the key is absent.
  const GgufValue* value(std::string_view key) const;

  // In the order of their data in the file.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return index_.contains(name); }  // whether it has this tensor
  // The tensor on the CPU, without a copy where its data is aligned: a view that keeps the mapping alive and must only
  // be read (writing to it is a segmentation fault). Clone it to change it.
  at::Tensor tensor(std::string_view name) const;

 private:
  struct Entry {
    at::ScalarType dtype;
    std::vector<int64_t> shape;
    int64_t begin = 0, bytes = 0;  // from the start of the file
  };

  class Parser;

  std::string path_;
  std::shared_ptr<const core::MappedFile> file_;
  GgufMetadata metadata_;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> index_;
};

}  // namespace adder::weights
