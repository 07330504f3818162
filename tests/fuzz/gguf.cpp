#include "adder/weights/gguf.h"

#include "tests/fuzz/fuzz.h"
#include "tests/fuzz/tensors.h"

using namespace adder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  folder.write({{"model.gguf", std::string(fuzz::text_of(data, size))}});
  fuzz::reads(size, {.per_byte = 20, .base = 20000},
              [] { fuzz::touch_all(weights::GgufFile(folder.path() / "model.gguf")); });
  return 0;
}
