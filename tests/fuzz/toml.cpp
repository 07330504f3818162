#include <algorithm>
#include <cstdlib>

#include "adder/core/options_io.h"
#include "tests/core/example_options.h"
#include "tests/fuzz/fuzz.h"

using namespace adder;

// A TOML file, and then what `--set` is given, twice at most: more of them take time and reach nothing else. What was
// read can be written, and read again it is the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::MemoryBound bound{.per_byte = 300, .base = 60000};
  const auto parts = fuzz::parts_of(fuzz::text_of(data, size));
  core::ExampleOptions options;
  fuzz::reads(size, bound, [&] { core::read_toml_text(options, parts[0], "run.toml"); });
  for (size_t i = 1; i < std::min<size_t>(parts.size(), 3); ++i)
    fuzz::reads(size, bound, [&] { core::set_option(options, parts[i]); });
  if (options == core::ExampleOptions{}) return 0;
  core::ExampleOptions from_toml, from_json;
  core::read_toml_text(from_toml, core::to_toml(options), "again");
  core::from_json(from_json, core::to_json(options), "again");
  if (from_toml != options || from_json != options) std::abort();
  return 0;
}
