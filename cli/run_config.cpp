#include "cli/run_config.h"

#include <fmt/format.h>

#include "adder/core/options_io.h"
#include "adder/models/load.h"

namespace adder::cli {

train::RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments,
                                 const std::string& finetune) {
  train::RunConfig config;
  if (!finetune.empty()) {
    config.model = models::model_options(finetune);
    config.train.init_from = finetune;
  }
  core::read_toml_file(config, path);
  for (const std::string& assignment : assignments) core::set_option(config, assignment);
  return config;
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
