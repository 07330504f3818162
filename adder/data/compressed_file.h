#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace adder::data {

// The whole content of a file; the suffixes .xz, .gz and .zst are decompressed (also several members one after
// another), any other name is plain. A missing, unreadable, empty, truncated or corrupt file is an error that names the
// path and, inside it, the byte position.
std::string read_file(const std::filesystem::path& path);
// The same in pieces of up to a megabyte, in little memory.
void read_file(const std::filesystem::path& path, const std::function<void(std::string_view piece)>& take);

}  // namespace adder::data
