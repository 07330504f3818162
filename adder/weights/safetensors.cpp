#include "adder/weights/safetensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "adder/core/check.h"

namespace adder::weights {
SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : path_(path.string()), file_(std::make_shared<core::MappedFile>(path)) {
  SafetensorsHeader header = parse_header(file_->bytes(), path_);
  data_start_ = header.data_start;
  metadata_ = std::move(header.metadata);
  for (TensorEntry& entry : header.tensors) {
    names_.push_back(entry.name);
    index_.emplace(entry.name, std::move(entry));
  }
}

at::Tensor SafetensorsFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  ADDER_CHECK(found != index_.end(), "{}: has no tensor {} (it has {} tensors)", path_, shown_name(std::string(name)),
              names_.size());
  const TensorEntry& entry = found->second;
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (entry.begin == entry.end) return at::empty(entry.shape, options);

  const int64_t start = data_start_ + entry.begin;
  const auto data = file_->bytes().subspan(static_cast<size_t>(start), static_cast<size_t>(entry.end - entry.begin));
  if (entry.dtype == at::kBool) {
    const auto bad = std::ranges::find_if(data, [](std::byte b) { return b > std::byte{1}; });
    ADDER_CHECK(bad == data.end(), "{}: tensor {}: a BOOL must be 0 or 1, got {} at byte {}", path_,
                shown_name(entry.name), static_cast<int>(*bad), start + (bad - data.begin()));
  }
  if (reinterpret_cast<uintptr_t>(data.data()) % c10::elementSize(entry.dtype) != 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data.data(), data.size());
    return copy;
  }
  const auto keep_alive = [file = file_](void*) {};
  return at::from_blob(const_cast<std::byte*>(data.data()), entry.shape, keep_alive, options);
}

}  // namespace adder::weights
