#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "adder/models/load.h"
#include "adder/models/mamba_lm.h"

// Models as others publish them: the original package (mamba_ssm) and transformers (mamba, falcon_mamba).
namespace adder::models {

// mamba_ssm's folders, or those of transformers.
enum class PublishedFormat { kOriginal, kTransformers };

// The model that a config.json describes; `where` begins the message of an error, which names the key. What is not this
// architecture (Mamba-2, attention layers, another activation) is refused.
MambaLMOptions options_from_config(const nlohmann::ordered_json& config, const std::string& where);

// The way back. Throws where the format has no word for an option, naming it.
nlohmann::ordered_json config_for(const MambaLMOptions& options, PublishedFormat format, torch::ScalarType type);

// A folder of config.json and weights in either naming, safetensors or pytorch_model.bin, float32, bfloat16 or float16;
// parameters are float32. Missing, surplus and misshapen tensors are one error that lists them.
LoadedModel load_published(const std::filesystem::path& path);

// How save_published() writes.
struct SaveOptions {
  PublishedFormat format = PublishedFormat::kTransformers;  // decides names, config.json and the kind of file
  // Of the large matrices; A, D, biases, norms and convolution stay float32.
  torch::ScalarType type = torch::kFloat;
  std::vector<std::pair<std::string, std::filesystem::path>> besides = {};  // names, and files copied as they are
  int64_t part_bytes = int64_t{5} << 30;                                    // safetensors of more bytes are parted
};
// The original package reads pytorch_model.bin, transformers safetensors: what is written. A tied head is stored once.
void save_published(const MambaLMImpl& model, const std::filesystem::path& path, const SaveOptions& options);

}  // namespace adder::models
