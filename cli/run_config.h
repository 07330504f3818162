#pragma once

#include <string>
#include <vector>

#include "adder/train/options.h"

namespace adder::cli {

// The configuration of a TOML file with the `--set` assignments on top. `finetune`, where not empty: a run, a
// checkpoint or a folder of published weights, whose model is what [model] begins from and whose weights the run begins
// with.
train::RunConfig read_run_config(const std::string& path, const std::vector<std::string>& assignments,
                                 const std::string& finetune = "");

// "130.1 M", "2.07 GB".
std::string count_text(int64_t count);
std::string bytes_text(int64_t bytes);

}  // namespace adder::cli
