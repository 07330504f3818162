#include "adder/weights/checkpoint_folder.h"

#include <fmt/format.h>

#include <array>

#include "adder/core/hash.h"
#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tensors.h"

using namespace adder;

namespace {

constexpr std::array kFiles = {"model.safetensors", "training.safetensors"};

std::string hash_of(std::string_view bytes) {
  return core::hash_bytes(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) text.replace(at, from.size(), to);
}

// Puts the sizes and hashes of the files where the document has "$bytes0" and "$hash0", and its own for "$hash".
std::string document_of(std::string text, const std::map<std::string, std::string>& files) {
  for (size_t i = 0; i < kFiles.size(); ++i) {
    const auto file = files.find(kFiles[i]);
    if (file == files.end()) continue;
    replace_all(text, fmt::format("$bytes{}", i), std::to_string(file->second.size()));
    replace_all(text, fmt::format("$hash{}", i), hash_of(file->second));
  }
  constexpr std::string_view kHash = ",\n  \"hash\": \"$hash\"\n}\n";
  if (!text.ends_with(kHash)) return text;
  const std::string hashed = text.substr(0, text.size() - kHash.size());
  return hashed + ",\n  \"hash\": \"" + hash_of(hashed + "\n}\n") + "\"\n}\n";
}

}  // namespace

// The input's first part is checkpoint.json, the others are the files that it lists.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  const auto parts = fuzz::parts_of(fuzz::text_of(data, size));
  std::map<std::string, std::string> files;
  for (size_t i = 0; i < kFiles.size() && i + 1 < parts.size(); ++i)
    files[kFiles[i]] = fuzz::with_header_length(parts[i + 1]);
  files["checkpoint.json"] = document_of(std::string(parts[0]), files);
  size_t bytes = 0;
  for (const auto& [name, contents] : files) bytes += contents.size();
  folder.write(files);
  fuzz::reads(bytes, {.per_byte = 200, .base = 40000}, [] {
    const weights::CheckpointFolder checkpoint(folder.path(), weights::Verify::kFilesAndTensors);
    for (const char* file : kFiles)
      for (const auto& [name, tensor] : checkpoint.tensors(file, weights::Access::kMapped)) fuzz::touch(tensor);
  });
  return 0;
}
