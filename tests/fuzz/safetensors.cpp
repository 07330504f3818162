#include "adder/weights/safetensors.h"

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tensors.h"

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  const std::string file = fuzz::with_header_length(fuzz::text_of(data, size));
  folder.write({{"model.safetensors", file}});
  fuzz::reads(file.size(), {.per_byte = 20, .base = 20000},
              [] { fuzz::touch_all(weights::SafetensorsFile(folder.path() / "model.safetensors")); });
  return 0;
}
