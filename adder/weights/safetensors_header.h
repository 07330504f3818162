#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace adder::weights {

// What a header may have at most, and the name in it that is no tensor's.
inline constexpr int64_t kMaxHeaderBytes = 100'000'000;
inline constexpr const char* kMetadataKey = "__metadata__";

using Metadata = std::map<std::string, std::string>;

struct TensorEntry {
  std::string name;
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes from the start of the data
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;  // in the order of their data, which they cover without holes
  Metadata metadata;
  int64_t data_start = 0;  // bytes from the start of the file
};

// The format's name of a dtype ("F32"), and its place in the order in which tensors are written (higher first). Throws
// for dtypes that the format or this reader does not know; `what` names the tensor.
const char* dtype_name(at::ScalarType dtype, const std::string& what);
int dtype_rank(at::ScalarType dtype);

// The header of a whole file, checked against the format and the file's size; errors begin with `path`.
SafetensorsHeader parse_header(std::span<const std::byte> file, const std::string& path);

// Everything before the data: length, JSON, and spaces up to a multiple of 8 bytes. `entries` as they will lie in the
// file.
std::string format_header(const std::vector<TensorEntry>& entries, const Metadata& metadata, const std::string& path);

// A name for an error message: in quotes, escaped, not too long.
std::string shown_name(const std::string& name);

}  // namespace adder::weights
