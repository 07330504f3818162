#include "adder/weights/gguf.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>

#include "adder/core/check.h"
#include "adder/weights/gguf_format.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {
using namespace gguf;

constexpr std::array kWrittenTypes = {at::kFloat, at::kHalf, at::kBFloat16};

class HeaderWriter {
 public:
  template <typename T>
  void number(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }

  void string(const std::string& value) {
    number<uint64_t>(value.size());
    text_ += value;
  }

  void value(const GgufValue& value) {
    std::visit([this](const auto& held) { typed(held); }, value);
  }

  void align() { text_.resize(static_cast<size_t>(padded(static_cast<int64_t>(text_.size()), kAlignment)), '\0'); }
  const std::string& text() const { return text_; }

 private:
  void element(bool value) { number<uint8_t>(value); }
  void element(const std::string& value) { string(value); }
  template <typename T>
  void element(T value) {
    number(value);
  }

  template <typename T>
  void typed(const T& held) {
    number<uint32_t>(value_type<T>());
    element(held);
  }
  template <typename T>
  void typed(const std::vector<T>& held) {
    number<uint32_t>(kArray);
    number<uint32_t>(value_type<T>());
    number<uint64_t>(held.size());
    for (size_t i = 0; i < held.size(); ++i) element(static_cast<const T&>(held[i]));
  }

  std::string text_;
};

void check_text(const std::string& text, const std::string& what) {
  try {
    (void)nlohmann::json(text).dump();
  } catch (const nlohmann::json::type_error&) {
    fail("{}: must be UTF-8, got {}", what, shown_name(text));
  }
}

void check_metadata(const GgufMetadata& metadata, const std::string& path) {
  std::set<std::string_view> keys;
  for (const auto& [key, value] : metadata) {
    const std::string where = fmt::format("{}: key {}", path, shown_name(key));
    ADDER_CHECK(!key.empty() && key.size() <= kMaxKey, "{}: must have 1 to {} bytes, got {}", where, kMaxKey,
                key.size());
    check_text(key, where);
    ADDER_CHECK(key != kAlignmentKey, "{}: is left to the writer, which aligns by {}", where, kAlignment);
    ADDER_CHECK(keys.insert(key).second, "{}: is given twice", where);
    if (const auto* text = std::get_if<std::string>(&value)) check_text(*text, where);
    if (const auto* texts = std::get_if<std::vector<std::string>>(&value)) {
      for (size_t i = 0; i < texts->size(); ++i) check_text((*texts)[i], fmt::format("{}: element {}", where, i));
    }
  }
}

void check_tensors(const std::vector<GgufTensor>& tensors, const std::string& path) {
  std::set<std::string_view> names;
  for (const GgufTensor& tensor : tensors) {
    const std::string where = fmt::format("{}: tensor {}", path, shown_name(tensor.name));
    // llama.cpp's own limit of 64 counts a zero at the end.
    ADDER_CHECK(!tensor.name.empty() && tensor.name.size() < kMaxName, "{}: its name must have 1 to {} bytes, got {}",
                where, kMaxName - 1, tensor.name.size());
    check_text(tensor.name, where);
    ADDER_CHECK(names.insert(tensor.name).second, "{}: is given twice", where);
    ADDER_CHECK(tensor.values.defined(), "{}: is undefined", where);
    ADDER_CHECK(tensor.values.layout() == at::kStrided && !tensor.values.is_meta(),
                "{}: must be dense with values, got {} on {}", where, c10::str(tensor.values.layout()),
                tensor.values.device().str());
    ADDER_CHECK(at::isFloatingType(tensor.values.scalar_type()), "{}: must hold floating-point values, got {}", where,
                c10::toString(tensor.values.scalar_type()));
    ADDER_CHECK(tensor.values.dim() <= kMaxDims, "{}: must have at most {} dimensions, got shape [{}]", where, kMaxDims,
                fmt::join(tensor.values.sizes(), ", "));
    ADDER_CHECK(std::ranges::find(kWrittenTypes, tensor.type) != kWrittenTypes.end(),
                "{}: can be written as F32, F16 or BF16, got {}", where, c10::toString(tensor.type));
  }
}

int64_t written_bytes(const GgufTensor& tensor) {
  return tensor.values.numel() * static_cast<int64_t>(c10::elementSize(tensor.type));
}

at::Tensor converted(const GgufTensor& tensor, const std::string& path) {
  const at::Tensor values = tensor.values.detach().to(at::kCPU).resolve_conj().resolve_neg();
  const at::Tensor out = values.to(tensor.type).contiguous();
  if (tensor.type == tensor.values.scalar_type()) return out;
  const at::Tensor lost = at::logical_and(at::isfinite(values), at::logical_not(at::isfinite(out)));
  ADDER_CHECK(!lost.any().item<bool>(), "{}: tensor {}: {} can not hold its value {}", path, shown_name(tensor.name),
              c10::toString(tensor.type), values.masked_select(lost)[0].item<double>());
  return out;
}

}  // namespace

void write_gguf_file(const std::filesystem::path& path, const GgufMetadata& metadata,
                     const std::vector<GgufTensor>& tensors) {
  check_metadata(metadata, path.string());
  check_tensors(tensors, path.string());
  HeaderWriter header;
  for (const char c : kMagic) header.number(c);
  header.number(kVersion);
  header.number<uint64_t>(tensors.size());
  header.number<uint64_t>(metadata.size());
  for (const auto& [key, value] : metadata) {
    header.string(key);
    header.value(value);
  }
  int64_t reached = 0;
  for (const GgufTensor& tensor : tensors) {
    header.string(tensor.name);
    header.number(static_cast<uint32_t>(tensor.values.dim()));
    for (int64_t i = tensor.values.dim(); i-- > 0;) header.number<uint64_t>(tensor.values.size(i));  // fastest first
    header.number(std::ranges::find(kTensorTypes, tensor.type, &TensorType::dtype)->number);
    header.number<uint64_t>(reached);
    reached += padded(written_bytes(tensor), kAlignment);
  }
  header.align();
  core::write_file_atomically(path, [&](core::FileWriter& out) {
    out.write(header.text());
    for (const GgufTensor& tensor : tensors) {
      const at::Tensor values = converted(tensor, path.string());
      const int64_t bytes = written_bytes(tensor);
      out.write({static_cast<const std::byte*>(values.const_data_ptr()), static_cast<size_t>(bytes)});
      out.write(std::string(static_cast<size_t>(padded(bytes, kAlignment) - bytes), '\0'));
    }
  });
}

}  // namespace adder::weights
