#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adder/core/files.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {

// A safetensors file, memory-mapped. Opening checks the whole header, so that whatever opens lies within the file;
// errors name the file, the tensor and the byte position.
class SafetensorsFile {
 public:
  // Throws adder::Error where it is no valid safetensors file.
  explicit SafetensorsFile(const std::filesystem::path& path);

  // In the order of their data in the file.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return index_.contains(name); }  // whether it has this tensor
  const Metadata& metadata() const { return metadata_; }                        // texts by name, beside the tensors

  // The tensor on the CPU, without a copy where its data is aligned: a view that keeps the mapping alive and must only
  // be read (writing to it is a segmentation fault). Clone it to change it.
  at::Tensor tensor(std::string_view name) const;

 private:
  std::string path_;
  std::shared_ptr<const core::MappedFile> file_;
  int64_t data_start_;
  std::vector<std::string> names_;
  std::map<std::string, TensorEntry, std::less<>> index_;
  Metadata metadata_;
};

// Writes tensors of any device and strides at once (core::write_file_atomically), one after the other, in the order of
// the reference package: wider types first, then by name. The same tensors and metadata give the same bytes.
void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors, const Metadata& metadata = {});

// XXH3-128 over dtype, shape and values, of any device and strides.
std::string tensor_hash(const at::Tensor& tensor);

}  // namespace adder::weights
