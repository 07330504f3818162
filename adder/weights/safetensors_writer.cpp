#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "adder/core/check.h"
#include "adder/core/hash.h"
#include "adder/weights/safetensors.h"

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

std::string format_header(const std::vector<TensorEntry>& entries, const Metadata& metadata, const std::string& path) {
  // An ordered object of this many names would search them all for each one.
  std::vector<std::string> fields;
  std::set<std::string_view> names;
  try {
    if (!metadata.empty()) fields.push_back(fmt::format("\"{}\":{}", kMetadataKey, nlohmann::json(metadata).dump()));
    for (const TensorEntry& entry : entries) {
      ADDER_CHECK(entry.name != kMetadataKey, "{}: no tensor can be called {}", path, kMetadataKey);
      ADDER_CHECK(names.insert(entry.name).second, "{}: tensor {} is given twice", path, shown_name(entry.name));
      fields.push_back(fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                                   nlohmann::json(entry.name).dump(), dtype_name(entry.dtype, path),
                                   fmt::join(entry.shape, ","), entry.begin, entry.end));
    }
  } catch (const nlohmann::json::type_error&) {
    fail("{}: names of tensors and metadata must be UTF-8", path);
  }
  std::string text = fmt::format("{{{}}}", fmt::join(fields, ","));
  text.resize((text.size() + 7) / 8 * 8, ' ');
  ADDER_CHECK(text.size() <= static_cast<size_t>(kMaxHeaderBytes), "{}: the header must have at most {} bytes, got {}",
              path, kMaxHeaderBytes, text.size());
  const uint64_t length = text.size();
  std::string out(sizeof(length), '\0');
  std::memcpy(out.data(), &length, sizeof(length));
  return out + text;
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
