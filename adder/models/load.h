#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>

#include "adder/models/mamba_lm.h"

namespace adder::models {

// The file of a checkpoint that holds the model's parameters.
inline constexpr const char* kModelFile = "model.safetensors";

// Copies tensors by name into the model's parameters. Missing, surplus and misshapen ones are one error that lists
// them; nothing is copied then. `where` begins the message.
void load_parameters(MambaLMImpl& model, const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     const std::string& where);

// The weights of a checkpoint folder, of a run folder's newest checkpoint that is whole, or of a published folder, into
// a model of the same shape; what is damaged is told on stderr.
void load_weights(MambaLMImpl& model, const std::filesystem::path& path);

// What the model of such a folder is, read without its weights.
MambaLMOptions model_options(const std::filesystem::path& path);

// What load_model() found.
struct LoadedModel {
  MambaLM model{nullptr};                    // in evaluation mode, on the CPU
  nlohmann::ordered_json state;              // of the checkpoint: step, config, ...
  std::filesystem::path path;                // the checkpoint that was taken
  std::vector<std::string> damaged;          // why newer ones were not
  torch::ScalarType stored = torch::kFloat;  // the embedding's type in the file
};

// A checkpoint folder, a run folder, of which `best` takes the best checkpoint and otherwise the newest that is whole,
// or a folder as others publish it (models/published.h).
LoadedModel load_model(const std::filesystem::path& path, bool best = false);

}  // namespace adder::models
