#include "adder/weights/torch_file.h"

#include <zlib.h>

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tensors.h"

using namespace adder;

namespace {

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// A zip archive of uncompressed entries with the right sums.
std::string zip_of(const std::vector<std::pair<std::string, std::string>>& entries) {
  std::string out, directory;
  for (const auto& [name, data] : entries) {
    const auto size = static_cast<uint32_t>(data.size()), at = static_cast<uint32_t>(out.size());
    const auto sum = static_cast<uint32_t>(crc32_z(0, reinterpret_cast<const Bytef*>(data.data()), data.size()));
    const std::string common = raw<uint16_t>(20) + raw<uint16_t>(0) + raw<uint16_t>(0) + raw<uint32_t>(0) + raw(sum) +
                               raw(size) + raw(size) + raw(static_cast<uint16_t>(name.size())) + raw<uint16_t>(0);
    out += "PK\x03\x04" + common + name + data;
    directory += "PK\x01\x02" + raw<uint16_t>(20) + common + std::string(10, '\0') + raw(at) + name;
  }
  const auto count = static_cast<uint16_t>(entries.size());
  return out + directory + "PK\x05\x06" + raw<uint32_t>(0) + raw(count) + raw(count) +
         raw(static_cast<uint32_t>(directory.size())) + raw(static_cast<uint32_t>(out.size())) + raw<uint16_t>(0);
}

}  // namespace

// A whole file, or the named parts of an archive.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  const std::string_view input = fuzz::text_of(data, size);
  const bool whole = input.starts_with("PK") || input.starts_with('\x80');
  const std::string file = whole ? std::string(input) : zip_of(fuzz::named_parts(input));
  folder.write({{"model.bin", file}});
  fuzz::reads(file.size(), {.per_byte = 200, .base = 40000},
              [] { fuzz::touch_all(weights::TorchFile(folder.path() / "model.bin")); });
  return 0;
}
