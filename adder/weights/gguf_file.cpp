#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>

#include "adder/core/check.h"
#include "adder/weights/gguf.h"
#include "adder/weights/gguf_format.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
using namespace gguf;
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

}  // namespace

// Reads what comes before the data, front to back; every length is compared with what is left before it is used.
class GgufFile::Parser {
 public:
  Parser(std::span<const std::byte> file, const std::string& path) : file_(file), path_(path) {}

  void parse(GgufFile& out) {
    ADDER_CHECK(file_.size() >= 24,
                "{}: not a GGUF file: it must begin with 24 bytes of magic, version and counts, "
                "but has {} in all",
                path_, file_.size());
    ADDER_CHECK(std::memcmp(file_.data(), kMagic.data(), kMagic.size()) == 0,
                "{}: not a GGUF file: it must begin with the letters GGUF", path_);
    at_ = kMagic.size();
    const auto version = number<uint32_t>("the version");
    ADDER_CHECK(version == kVersion, "{}: its GGUF version must be {}, got {}{}", path_, kVersion, version,
                version == __builtin_bswap32(kVersion) ? " (a big-endian file)" : "");
    const auto tensors = count("the number of tensors", kMinTensor);
    const auto values = count("the number of keys", kMinValue);
    for (uint64_t i = 0; i < values; ++i) add_value(out);
    const int64_t alignment = alignment_of(out);
    for (uint64_t i = 0; i < tensors; ++i) add_tensor(out, alignment);
    check_layout(out, alignment);
  }

 private:
  // The fewest bytes of a key with its value, and of a tensor's entry.
  static constexpr uint64_t kMinValue = 8 + 1 + 4 + 1, kMinTensor = 8 + 1 + 4 + 4 + 8;

  template <typename... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> text, Args&&... args) const {
    fail("{}: before byte {}: {}", path_, at_, fmt::format(text, std::forward<Args>(args)...));
  }

  uint64_t left() const { return file_.size() - at_; }

  std::span<const std::byte> take(uint64_t bytes, const std::string& what) {
    ADDER_CHECK(bytes <= left(), "{}: {} at byte {} needs {} bytes, but the file has {} more: is it cut off?", path_,
                what, at_, bytes, left());
    const auto taken = file_.subspan(at_, bytes);
    at_ += bytes;
    return taken;
  }

  template <typename T>
  T number(const std::string& what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  uint64_t count(const std::string& what, uint64_t least_bytes) {
    const auto value = number<uint64_t>(what);
    if (value > left() / least_bytes) bad("{} is {}, but the file has {} more bytes", what, value, left());
    return value;
  }

  std::string string(const std::string& what) {
    const auto text = take(number<uint64_t>(what), what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  template <typename T>
  T element(const std::string& what) {
    if constexpr (std::is_same_v<T, std::string>) {
      return string(what);
    } else if constexpr (std::is_same_v<T, bool>) {
      const auto value = number<uint8_t>(what);
      if (value > 1) bad("{}: a boolean must be 0 or 1, got {}", what, value);
      return value == 1;
    } else {
      return number<T>(what);
    }
  }

  template <typename T>
  bool read_as(uint32_t type, bool array, const std::string& what, GgufValue& value) {
    if (type != value_type<T>()) return false;
    if (!array) {
      value = element<T>(what);
      return true;
    }
    constexpr uint64_t kLeast = std::is_same_v<T, std::string> ? sizeof(uint64_t) : sizeof(T);
    std::vector<T> elements(count(what + ": its length", kLeast));
    for (size_t i = 0; i < elements.size(); ++i) elements[i] = element<T>(what);
    value = std::move(elements);
    return true;
  }

  void add_value(GgufFile& out) {
    const std::string key = string("a key");
    if (key.empty() || key.size() > kMaxKey) bad("a key must have 1 to {} bytes, got {}", kMaxKey, key.size());
    const std::string what = "key " + shown_name(key);
    if (!keys_.insert(key).second) bad("{} appears twice", what);
    auto type = number<uint32_t>(what);
    const bool array = type == kArray;
    if (array) type = number<uint32_t>(what);
    GgufValue value;
    const auto any = [&]<typename... T>() { return (read_as<T>(type, array, what, value) || ...); };
    if (!any.operator()<uint8_t, int8_t, uint16_t, int16_t, uint32_t, int32_t, uint64_t, int64_t, float, double, bool,
                        std::string>())
      bad("{}: the type of {} must be a number from 0 to 12{}, got {}", what, array ? "its elements" : "its value",
          array ? " but 9" : "", type);
    out.metadata_.emplace_back(key, std::move(value));
  }

  int64_t alignment_of(const GgufFile& out) const {
    const GgufValue* value = out.value(kAlignmentKey);
    if (!value) return kAlignment;
    const auto* alignment = std::get_if<uint32_t>(value);
    if (!alignment || !std::has_single_bit(*alignment))
      bad("{} must be a uint32 and a power of 2{}", kAlignmentKey,
          alignment ? fmt::format(", got {}", *alignment) : std::string());
    return *alignment;
  }

  void add_tensor(GgufFile& out, int64_t alignment) {
    const std::string name = string("a tensor's name");
    const std::string what = "tensor " + shown_name(name);
    if (name.empty() || name.size() > kMaxName)
      bad("{}: its name must have 1 to {} bytes, got {}", what, kMaxName, name.size());
    if (out.index_.contains(name)) bad("{} appears twice", what);
    const auto dims = number<uint32_t>(what);
    if (dims > kMaxDims) bad("{}: must have at most {} dimensions, got {}", what, kMaxDims, dims);
    Entry entry{};
    for (uint32_t i = 0; i < dims; ++i) {
      const auto size = number<uint64_t>(what);
      if (size > static_cast<uint64_t>(INT64_MAX)) bad("{}: size {} is too large", what, size);
      entry.shape.insert(entry.shape.begin(), static_cast<int64_t>(size));
    }
    const auto type = number<uint32_t>(what);
    const auto row = std::ranges::find(kTensorTypes, type, &TensorType::number);
    if (row == kTensorTypes.end())
      bad("{}: type must be one of F32 (0), F16 (1), I8 (24), I16 (25), I32 (26), I64 (27), F64 (28), BF16 (30); "
          "got {}, which is quantised or unknown",
          what, type);
    entry.dtype = row->dtype;
    const auto offset = number<uint64_t>(what);
    if (offset > file_.size() || static_cast<int64_t>(offset) % alignment != 0)
      bad("{}: its data must begin within the file at a multiple of {}, got {}", what, alignment, offset);
    entry.begin = static_cast<int64_t>(offset);
    entry.bytes = bytes_needed(entry, what);
    out.names_.push_back(name);
    out.index_.emplace(name, std::move(entry));
  }

  // Strides are products of sizes taken as 1 at least, and must fit too.
  int64_t bytes_needed(const Entry& entry, const std::string& what) const {
    int64_t bytes = static_cast<int64_t>(c10::elementSize(entry.dtype));
    bool empty = false;
    for (const int64_t size : entry.shape) {
      empty = empty || size == 0;
      if (__builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes))
        bad("{}: shape {} has more bytes than 64 bits can count", what, shape_text(entry.shape));
    }
    return empty ? 0 : bytes;
  }

  // Tensors lie one after another, each padded; llama.cpp demands the same. The last padding may be missing.
  void check_layout(GgufFile& out, int64_t alignment) {
    const auto file_size = static_cast<int64_t>(file_.size());
    const int64_t data_start =
        out.names_.empty() ? static_cast<int64_t>(at_) : padded(static_cast<int64_t>(at_), alignment);
    int64_t reached = data_start, end = data_start;
    for (const std::string& name : out.names_) {
      Entry& entry = out.index_.find(name)->second;
      entry.begin += data_start;
      ADDER_CHECK(entry.begin == reached, "{}: tensor {}: its data begins at byte {}, must begin at byte {}", path_,
                  shown_name(name), entry.begin, reached);
      ADDER_CHECK(entry.begin <= file_size && entry.bytes <= file_size - entry.begin,
                  "{}: tensor {}: {} bytes from byte {} on, but the file has {}: is it cut off?", path_,
                  shown_name(name), entry.bytes, entry.begin, file_size);
      end = entry.begin + entry.bytes;
      reached = padded(end, alignment);
    }
    const bool whole =
        file_size == end || file_size == reached || (out.names_.empty() && file_size == padded(end, alignment));
    ADDER_CHECK(whole, "{}: the tensors end at byte {}, but the file has {} bytes", path_, reached, file_size);
  }

  std::span<const std::byte> file_;
  const std::string& path_;
  size_t at_ = 0;
  std::set<std::string> keys_;
};

GgufFile::GgufFile(const std::filesystem::path& path)
    : path_(path.string()), file_(std::make_shared<core::MappedFile>(path)) {
  Parser(file_->bytes(), path_).parse(*this);
}

const GgufValue* GgufFile::value(std::string_view key) const {
  const auto found = std::ranges::find(metadata_, key, &std::pair<std::string, GgufValue>::first);
  return found == metadata_.end() ? nullptr : &found->second;
}

at::Tensor GgufFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  ADDER_CHECK(found != index_.end(), "{}: has no tensor {} (it has {} tensors)", path_, shown_name(std::string(name)),
              names_.size());
  const Entry& entry = found->second;
  const auto options = at::TensorOptions().dtype(entry.dtype);
  if (entry.bytes == 0) return at::empty(entry.shape, options);
  const auto data = file_->bytes().subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.bytes));
  if (reinterpret_cast<uintptr_t>(data.data()) % c10::elementSize(entry.dtype) != 0) {
    at::Tensor copy = at::empty(entry.shape, options);
    std::memcpy(copy.mutable_data_ptr(), data.data(), data.size());
    return copy;
  }
  const auto keep_alive = [file = file_](void*) {};
  return at::from_blob(const_cast<std::byte*>(data.data()), entry.shape, keep_alive, options);
}

}  // namespace adder::weights
