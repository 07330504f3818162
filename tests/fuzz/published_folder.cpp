#include "adder/weights/published_folder.h"

#include <algorithm>
#include <array>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tensors.h"

using namespace adder;

// The input's parts are files with these names.
constexpr std::array<std::string_view, 8> kNames = {
    "config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "a.safetensors",
    "b.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "a.bin",
};

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  std::map<std::string, std::string> files = {{"config.json", "{}"}};
  size_t bytes = 0;
  for (const auto& [name, contents] : fuzz::named_parts(fuzz::text_of(data, size)))
    if (std::ranges::find(kNames, name) != kNames.end())
      files[name] = name.ends_with(".safetensors") ? fuzz::with_header_length(contents) : contents;
  for (const auto& [name, contents] : files) bytes += contents.size();
  folder.write(files);
  fuzz::reads(bytes, {.per_byte = 200, .base = 40000}, [] {
    const weights::PublishedFolder published(folder.path());
    for (const auto& [name, tensor] : published.tensors()) fuzz::touch(tensor);
  });
  return 0;
}
