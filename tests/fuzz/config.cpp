#include "adder/core/json_text.h"
#include "adder/core/options_io.h"
#include "adder/models/published.h"
#include "tests/fuzz/fuzz.h"

using namespace adder;

// A config.json in either naming, and a configuration as a checkpoint has it. What was read can be written, and read
// again it is the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::MemoryBound bound{.per_byte = 200, .base = 40000};
  nlohmann::ordered_json document;
  if (!fuzz::reads(size, bound, [&] { document = core::parse_json(fuzz::text_of(data, size), "config.json"); }))
    return 0;
  fuzz::reads(size, bound, [&] {
    models::MambaLMOptions options;
    core::from_json(options, document, "config.json");
    (void)core::to_json(options);
  });
  models::MambaLMOptions options;
  if (!fuzz::reads(size, bound, [&] { options = models::options_from_config(document, "config.json"); })) return 0;
  for (const auto format : {models::PublishedFormat::kOriginal, models::PublishedFormat::kTransformers}) {
    nlohmann::ordered_json written;
    const auto write = [&] { written = models::config_for(options, format, torch::kFloat); };
    if (!fuzz::reads(size, bound, write)) continue;
    fuzz::reads(size, bound, [&] {
      const auto again = models::options_from_config(written, "again");
      if (models::config_for(again, format, torch::kFloat) != written) std::abort();
    });
  }
  return 0;
}
