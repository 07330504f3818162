#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "adder/core/hash.h"

// What the writer and the readers of checkpoint folders share.
namespace adder::weights::checkpoint {

inline constexpr std::string_view kFormat = "adder-checkpoint";
inline constexpr int64_t kFormatVersion = 1;
inline constexpr const char* kDocument = "checkpoint.json";
inline constexpr std::string_view kSuffix = ".safetensors";

// A file name that stays within its folder on every system.
inline bool is_file_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-' ||
           c == '_';
  };
  return name.size() > kSuffix.size() && name.size() <= 200 && name.ends_with(kSuffix) && name[0] != '.' &&
         std::ranges::all_of(name, allowed);
}

// The hash lies at the end of the text, and is that of the text without it: the same whoever writes numbers how.
inline constexpr std::string_view kBeforeHash = ",\n  \"hash\": \"";
inline constexpr std::string_view kAfterHash = "\"\n}\n";
inline constexpr std::string_view kEnd = "\n}\n";

inline std::string hash_text(const std::string& text) {
  return core::hash_bytes(std::as_bytes(std::span(text)));
}

std::filesystem::file_type kind_of(const std::filesystem::path& path);
// Throws where there is no folder.
void check_folder(const std::filesystem::path& path);

}  // namespace adder::weights::checkpoint
