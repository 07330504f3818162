#include "cli/run_config.h"

#include <fmt/format.h>

#include "adder/core/error.h"
#include "adder/core/options_io.h"

namespace adder::cli {

train::RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments) {
  train::RunConfig config;
  core::read_toml_file(config, path);
  for (const std::string& assignment : assignments) core::set_option(config, assignment);
  return config;
}

// In double, which is exact for any model that fits into a machine and does not overflow for the others.
int64_t parameter_count(const models::MambaLMOptions& options) {
  const nn::MambaOptions& mixer = options.mixer;
  nn::MambaOptions smallest = mixer;
  smallest.expand = smallest.d_state = smallest.d_conv = 1;
  smallest.dt_rank = "none";
  const nn::Mamba checked(1, smallest);

  const auto width = static_cast<double>(options.d_model), inner = static_cast<double>(mixer.expand) * width;
  const auto rank = static_cast<double>(mixer.rank(options.d_model));
  const auto states = static_cast<double>(mixer.d_state) * (mixer.complex ? 2 : 1);
  double block = 2 * inner * width + inner * width;    // in_proj, out_proj
  block += inner * static_cast<double>(mixer.d_conv);  // conv1d
  block += inner * (rank + 2 * states);                // x_proj, or B and C where constant
  block += inner * (rank + 1);                         // dt_proj
  block += inner * (states + 1);                       // A, D
  block += (mixer.bias ? 2 * inner + width : 0) + (mixer.conv_bias ? inner : 0);
  const double norm = options.norm == "layer" ? 2 * width : width;
  const double embedding = static_cast<double>(options.padded_vocab()) * width;
  const double count =
      (options.tie_embeddings ? 1 : 2) * embedding + static_cast<double>(options.n_layer) * (norm + block) + norm;
  ADDER_CHECK(count < 9e15, "the model has {:.1e} parameters, which no machine holds", count);
  return static_cast<int64_t>(count);
}

std::string count_text(int64_t count) {
  const auto value = static_cast<double>(count);
  if (count >= 1000000) return fmt::format("{:.2f} M", value / 1e6);
  if (count >= 1000) return fmt::format("{:.1f} k", value / 1e3);
  return std::to_string(count);
}

std::string bytes_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 1000000000) return fmt::format("{:.2f} GB", value / 1e9);
  if (bytes >= 1000000) return fmt::format("{:.1f} MB", value / 1e6);
  return fmt::format("{:.1f} kB", value / 1e3);
}

}  // namespace adder::cli
