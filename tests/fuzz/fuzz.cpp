#include "tests/fuzz/fuzz.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "adder/core/check.h"
#include "adder/core/files.h"

namespace adder::fuzz {
namespace fs = std::filesystem;

std::vector<std::string_view> parts_of(std::string_view input) {
  std::vector<std::string_view> parts;
  for (size_t end; (end = input.find(kBetweenFiles)) != input.npos; input.remove_prefix(end + kBetweenFiles.size()))
    parts.push_back(input.substr(0, end));
  parts.push_back(input);
  return parts;
}

std::vector<std::pair<std::string, std::string>> named_parts(std::string_view input) {
  std::vector<std::pair<std::string, std::string>> named;
  for (const std::string_view part : parts_of(input)) {
    const size_t line = std::min(part.find('\n'), part.size());
    named.emplace_back(part.substr(0, line), part.substr(std::min(line + 1, part.size())));
  }
  return named;
}

std::string with_header_length(std::string_view part) {
  if (!part.starts_with('{')) return std::string(part);
  const size_t line = part.find('\n');
  const uint64_t length = std::min(line, part.size());
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  file += part.substr(0, length);
  if (line != part.npos) file += part.substr(line + 1);
  return file;
}

Folder::Folder() {
  std::string name = "/dev/shm/adder_fuzz_XXXXXX";
  ADDER_CHECK(::mkdtemp(name.data()), "no folder can be made in /dev/shm");
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void Folder::write(const std::map<std::string, std::string>& files) {
  for (const auto& [name, contents] : files_)
    if (!files.contains(name)) ::unlink((path_ / name).c_str());
  for (const auto& [name, contents] : files) {
    const auto before = files_.find(name);
    if (before != files_.end() && before->second == contents) continue;
    const fs::path path = path_ / name;
    core::FileWriter(path, path).write(contents);
  }
  files_ = files;
}

}  // namespace adder::fuzz
