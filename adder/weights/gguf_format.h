#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <bit>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

// The numbers of the GGUF format that its writer and its reader share.
namespace adder::weights::gguf {

static_assert(std::endian::native == std::endian::little,
              "the format is little-endian, and tensors are mapped as they lie");

inline constexpr std::string_view kMagic = "GGUF";
inline constexpr uint32_t kVersion = 3;
inline constexpr int64_t kAlignment = 32;
inline constexpr const char* kAlignmentKey = "general.alignment";
inline constexpr int64_t kMaxDims = 4;
inline constexpr size_t kMaxName = 64;
inline constexpr size_t kMaxKey = 65535;

// The format's numbers for types of values.
inline constexpr uint32_t kArray = 9;
template <typename T>
constexpr uint32_t value_type() {
  if constexpr (std::is_same_v<T, uint8_t>) return 0;
  if constexpr (std::is_same_v<T, int8_t>) return 1;
  if constexpr (std::is_same_v<T, uint16_t>) return 2;
  if constexpr (std::is_same_v<T, int16_t>) return 3;
  if constexpr (std::is_same_v<T, uint32_t>) return 4;
  if constexpr (std::is_same_v<T, int32_t>) return 5;
  if constexpr (std::is_same_v<T, float>) return 6;
  if constexpr (std::is_same_v<T, bool>) return 7;
  if constexpr (std::is_same_v<T, std::string>) return 8;
  if constexpr (std::is_same_v<T, uint64_t>) return 10;
  if constexpr (std::is_same_v<T, int64_t>) return 11;
  if constexpr (std::is_same_v<T, double>) return 12;
}

struct TensorType {
  const char* name;
  uint32_t number;
  at::ScalarType dtype;
};

inline constexpr std::array kTensorTypes = {
    TensorType{"F32", 0, at::kFloat},   TensorType{"F16", 1, at::kHalf},       TensorType{"I8", 24, at::kChar},
    TensorType{"I16", 25, at::kShort},  TensorType{"I32", 26, at::kInt},       TensorType{"I64", 27, at::kLong},
    TensorType{"F64", 28, at::kDouble}, TensorType{"BF16", 30, at::kBFloat16},
};

inline int64_t padded(int64_t bytes, int64_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

}  // namespace adder::weights::gguf
