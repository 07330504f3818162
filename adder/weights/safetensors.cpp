#include "adder/weights/safetensors.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>

#include "adder/core/check.h"
#include "adder/core/hash.h"

namespace adder::weights {
namespace {

// The same values on the CPU, contiguous, with nothing lazy left; the tensor itself where it is so already.
at::Tensor plain_values(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU).resolve_conj().resolve_neg().contiguous();
}

std::span<const std::byte> bytes_of(const at::Tensor& plain) {
  return {static_cast<const std::byte*>(plain.const_data_ptr()), static_cast<size_t>(plain.nbytes())};
}

}  // namespace

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

void write_safetensors(const std::filesystem::path& path,
                       const std::vector<std::pair<std::string, at::Tensor>>& tensors, const Metadata& metadata) {
  std::vector<std::pair<TensorEntry, const at::Tensor*>> parts;
  for (const auto& [name, tensor] : tensors) {
    const std::string where = fmt::format("{}: tensor {}", path.string(), shown_name(name));
    ADDER_CHECK(tensor.defined(), "{}: is undefined", where);
    ADDER_CHECK(tensor.layout() == at::kStrided && !tensor.is_meta(), "{}: must be dense with values, got {} on {}",
                where, c10::str(tensor.layout()), tensor.device().str());
    dtype_name(tensor.scalar_type(), where);
    parts.push_back({{name, tensor.scalar_type(), tensor.sizes().vec()}, &tensor});
  }
  std::ranges::sort(parts, [](const auto& a, const auto& b) {
    const int left = dtype_rank(a.first.dtype), right = dtype_rank(b.first.dtype);
    return left != right ? left > right : a.first.name < b.first.name;
  });
  std::vector<TensorEntry> entries;
  int64_t reached = 0;
  for (auto& [entry, tensor] : parts) {
    entry.begin = reached;
    reached += tensor->numel() * static_cast<int64_t>(tensor->element_size());
    entry.end = reached;
    entries.push_back(entry);
  }
  const std::string header = format_header(entries, metadata, path.string());
  core::write_file_atomically(path, [&](core::FileWriter& out) {
    out.write(header);
    for (const auto& [entry, tensor] : parts) out.write(bytes_of(plain_values(*tensor)));
  });
}

std::string tensor_hash(const at::Tensor& tensor) {
  const std::string form =
      fmt::format("{}[{}]", dtype_name(tensor.scalar_type(), "tensor_hash"), fmt::join(tensor.sizes(), ","));
  core::Hasher hasher;
  hasher.update(std::as_bytes(std::span(form.data(), form.size())));
  hasher.update(bytes_of(plain_values(tensor)));
  return hasher.hex();
}

}  // namespace adder::weights
