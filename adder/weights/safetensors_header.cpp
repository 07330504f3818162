#include "adder/weights/safetensors_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "adder/core/check.h"
#include "adder/core/json_text.h"

namespace adder::weights {
namespace {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian, and tensors are mapped as they lie");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kMaxDims = 64;

struct DtypeName {
  const char* name;
  at::ScalarType dtype;
};

// In the reference package's order.
constexpr std::array kDtypes = {
    DtypeName{"BOOL", at::kBool},     DtypeName{"U8", at::kByte},          DtypeName{"I8", at::kChar},
    DtypeName{"I16", at::kShort},     DtypeName{"U16", at::kUInt16},       DtypeName{"F16", at::kHalf},
    DtypeName{"BF16", at::kBFloat16}, DtypeName{"I32", at::kInt},          DtypeName{"U32", at::kUInt32},
    DtypeName{"F32", at::kFloat},     DtypeName{"C64", at::kComplexFloat}, DtypeName{"F64", at::kDouble},
    DtypeName{"I64", at::kLong},      DtypeName{"U64", at::kUInt64},
};

std::string dtype_list() {
  std::vector<std::string> names;
  for (const DtypeName& row : kDtypes) names.push_back(row.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

// Receives the JSON piece by piece, so that nothing but the header's own form is ever built, however deep or large it
// is.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(std::string_view text, const std::string& path) : text_(text), path_(path), reached_(text.data()) {}

  SafetensorsHeader read() {
    const char* end = text_.data() + text_.size();
    nlohmann::json::sax_parse(core::JsonIterator(text_.data(), &reached_), core::JsonIterator(end, &reached_), this);
    return std::move(header_);
  }

  bool start_object(size_t) override {
    if (place_ == Place::kOutside) return enter(Place::kTop);
    if (place_ == Place::kTop) {
      fields_ = {};
      return enter(key_ == kMetadataKey ? Place::kMetadata : Place::kTensor);
    }
    return misplaced("an object");
  }

  bool end_object() override {
    if (place_ == Place::kTop) return enter(Place::kOutside);
    if (place_ == Place::kTensor) add_tensor();
    return enter(Place::kTop);
  }

  bool key(std::string& name) override {
    if (place_ == Place::kTop) {
      if (!names_.insert(name).second) bad("tensor {} appears twice", shown_name(name));
      key_ = name;
    } else if (place_ == Place::kMetadata) {
      if (header_.metadata.contains(name)) bad("{}: key {} appears twice", kMetadataKey, shown_name(name));
      metadata_key_ = name;
    } else {
      bool* seen = name == "dtype" ? &fields_.dtype : name == "shape" ? &fields_.shape : &fields_.offsets;
      if (name != "dtype" && name != "shape" && name != "data_offsets") {
        bad("tensor {}: unknown field {}; expected dtype, shape and data_offsets", shown_name(key_), shown_name(name));
      }
      if (*seen) bad("tensor {}: field {} appears twice", shown_name(key_), name);
      *seen = true;
      field_ = name;
    }
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMetadata) {
      header_.metadata.emplace(metadata_key_, value);
      return true;
    }
    if (place_ != Place::kTensor || field_ != "dtype") return misplaced("a string");
    const auto row = std::ranges::find_if(kDtypes, [&](const DtypeName& known) { return value == known.name; });
    if (row == kDtypes.end()) {
      bad("tensor {}: dtype must be one of {}; got {}", shown_name(key_), dtype_list(), shown_name(value));
    }
    dtype_ = row->dtype;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || field_ == "dtype") return misplaced("an array");
    numbers_.clear();
    return enter(Place::kNumbers);
  }

  bool end_array() override {
    if (field_ == "shape") {
      shape_ = numbers_;
    } else {
      if (numbers_.size() != 2)
        bad("tensor {}: data_offsets must be 2 numbers, got {}", shown_name(key_), numbers_.size());
      offsets_ = {numbers_[0], numbers_[1]};
    }
    return enter(Place::kTensor);
  }

  bool number_unsigned(uint64_t value) override {
    if (place_ != Place::kNumbers) return misplaced("a number");
    if (value > static_cast<uint64_t>(INT64_MAX))
      bad("tensor {}: {} in {} is too large", shown_name(key_), value, field_);
    if (field_ == "shape" && numbers_.size() == kMaxDims) {
      bad("tensor {}: shape must have at most {} dimensions", shown_name(key_), kMaxDims);
    }
    if (field_ == "data_offsets" && numbers_.size() == 2)
      bad("tensor {}: data_offsets must be 2 numbers", shown_name(key_));
    numbers_.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool number_integer(int64_t) override { return misplaced("a negative number"); }
  bool number_float(double, const std::string&) override { return misplaced("a fraction or a number beyond 64 bits"); }
  bool null() override { return misplaced("null"); }
  bool boolean(bool) override { return misplaced("a boolean"); }
  bool binary(nlohmann::json::binary_t&) override { return misplaced("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
    fail("{}: the header is not valid JSON at byte {}: {}", path_, kLengthBytes + static_cast<int64_t>(position) - 1,
         core::json_error_reason(error));
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kNumbers };

  struct Fields {
    bool dtype = false, shape = false, offsets = false;
  };

  bool enter(Place place) {
    place_ = place;
    return true;
  }

  template <typename... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> text, Args&&... args) {
    fail("{}: header, before byte {}: {}", path_, kLengthBytes + (reached_ - text_.data()),
         fmt::format(text, std::forward<Args>(args)...));
  }

  bool misplaced(const char* got) {
    switch (place_) {
      case Place::kOutside:
        bad("must be an object, got {}", got);
      case Place::kTop:
        bad("{} must be an object, got {}", shown_name(key_), got);
      case Place::kMetadata:
        bad("{}: {} must be a string, got {}", kMetadataKey, shown_name(metadata_key_), got);
      case Place::kNumbers:
        bad("tensor {}: {} must hold whole numbers from 0, got {}", shown_name(key_), field_, got);
      case Place::kTensor:
        break;
    }
    bad("tensor {}: {} must be {}, got {}", shown_name(key_), field_, field_ == "dtype" ? "a string" : "an array", got);
  }

  void add_tensor() {
    const char* missing = !fields_.dtype     ? "dtype"
                          : !fields_.shape   ? "shape"
                          : !fields_.offsets ? "data_offsets"
                                             : nullptr;
    if (missing) bad("tensor {}: {} is missing", shown_name(key_), missing);
    header_.tensors.push_back({key_, dtype_, shape_, offsets_[0], offsets_[1]});
  }

  std::string_view text_;
  const std::string& path_;
  const char* reached_;
  SafetensorsHeader header_;
  Place place_ = Place::kOutside;
  std::set<std::string> names_;
  std::string key_, metadata_key_, field_;
  Fields fields_;
  at::ScalarType dtype_ = at::kFloat;
  std::vector<int64_t> shape_, numbers_;
  std::array<int64_t, 2> offsets_{};
};

// The bytes that a tensor needs; strides are products of sizes taken as 1 at least, and must fit too.
int64_t bytes_needed(const TensorEntry& entry, const std::string& where) {
  int64_t strides = static_cast<int64_t>(c10::elementSize(entry.dtype));
  bool empty = false;
  for (const int64_t size : entry.shape) {
    empty = empty || size == 0;
    const bool overflow = __builtin_mul_overflow(strides, std::max<int64_t>(size, 1), &strides);
    ADDER_CHECK(!overflow, "{}: shape {} has more bytes than 64 bits can count", where, shape_text(entry.shape));
  }
  return empty ? 0 : strides;
}

void check_layout(SafetensorsHeader& header, int64_t file_size, const std::string& path) {
  const int64_t data_size = file_size - header.data_start;
  std::ranges::stable_sort(header.tensors, {}, [](const TensorEntry& e) { return std::pair(e.begin, e.end); });
  int64_t reached = 0;
  std::string before = "the start of the data";
  for (const TensorEntry& entry : header.tensors) {
    const std::string where = fmt::format("{}: tensor {}", path, shown_name(entry.name));
    ADDER_CHECK(entry.begin <= entry.end, "{}: data_offsets must not fall, got [{}, {}]", where, entry.begin,
                entry.end);
    const int64_t needed = bytes_needed(entry, where);
    ADDER_CHECK(entry.end - entry.begin == needed, "{}: {} {} takes {} bytes, but data_offsets [{}, {}] hold {}", where,
                dtype_name(entry.dtype, where), shape_text(entry.shape), needed, entry.begin, entry.end,
                entry.end - entry.begin);
    ADDER_CHECK(entry.end <= data_size,
                "{}: its data ends {} bytes after byte {}, but the file has {} bytes: is it cut off?", where, entry.end,
                header.data_start, file_size);
    ADDER_CHECK(entry.begin >= reached, "{}: its data begins at byte {} and overlaps that of {}, which ends at byte {}",
                where, header.data_start + entry.begin, before, header.data_start + reached);
    ADDER_CHECK(entry.begin == reached, "{}: its data begins at byte {}, which leaves a hole after {} at byte {}",
                where, header.data_start + entry.begin, before, header.data_start + reached);
    reached = entry.end;
    before = shown_name(entry.name);
  }
  ADDER_CHECK(reached == data_size, "{}: the tensors end at byte {}, but the file has {} bytes", path,
              header.data_start + reached, file_size);
}

}  // namespace

const char* dtype_name(at::ScalarType dtype, const std::string& what) {
  const auto row = std::ranges::find(kDtypes, dtype, &DtypeName::dtype);
  ADDER_CHECK(row != kDtypes.end(), "{}: dtype must be one of {}; got {}", what, dtype_list(), c10::toString(dtype));
  return row->name;
}

int dtype_rank(at::ScalarType dtype) {
  return static_cast<int>(std::ranges::find(kDtypes, dtype, &DtypeName::dtype) - kDtypes.begin());
}

SafetensorsHeader parse_header(std::span<const std::byte> file, const std::string& path) {
  const int64_t file_size = static_cast<int64_t>(file.size());
  ADDER_CHECK(file_size >= kLengthBytes,
              "{}: not a safetensors file: it must begin with a length of 8 bytes, but has {} in all", path, file_size);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), sizeof(length));
  ADDER_CHECK(length <= static_cast<uint64_t>(kMaxHeaderBytes),
              "{}: not a safetensors file: the header's length (bytes 0 to 7) must be at most {}, got {}", path,
              kMaxHeaderBytes, length);
  ADDER_CHECK(length <= static_cast<uint64_t>(file_size - kLengthBytes),
              "{}: the header ends at byte {}, but the file has {} bytes: is it cut off?", path,
              length + static_cast<uint64_t>(kLengthBytes), file_size);
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  ADDER_CHECK(text.starts_with('{'), "{}: not a safetensors file: the header must begin with '{{' at byte 8", path);
  core::check_no_zero_byte(text, path + ": the header", kLengthBytes);
  SafetensorsHeader header = HeaderReader(text, path).read();
  header.data_start = kLengthBytes + static_cast<int64_t>(length);
  check_layout(header, file_size, path);
  return header;
}

std::string shown_name(const std::string& name) {
  constexpr size_t kShown = 120;
  const bool cut = name.size() > kShown;
  return nlohmann::json(name.substr(0, kShown)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
         (cut ? "..." : "");
}

}  // namespace adder::weights
