#include "adder/models/load.h"

#include <torch/torch.h>

#include <map>

#include "adder/core/check.h"
#include "adder/core/options_io.h"
#include "adder/models/published.h"
#include "adder/weights/checkpoint_folder.h"
#include "adder/weights/published_folder.h"

namespace adder::models {

void load_parameters(MambaLMImpl& model, const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                     const std::string& where) {
  std::map<std::string, torch::Tensor> given(tensors.begin(), tensors.end());
  std::vector<std::pair<torch::Tensor, torch::Tensor>> copies;
  std::string faults;
  for (auto& parameter : model.named_parameters()) {
    const auto found = given.find(parameter.key());
    if (found == given.end()) {
      faults += fmt::format("\n  missing: {}", parameter.key());
      continue;
    }
    if (found->second.sizes() != parameter.value().sizes())
      faults +=
          fmt::format("\n  {}: must have shape ({}), got ({})", parameter.key(),
                      fmt::join(parameter.value().sizes().vec(), ", "), fmt::join(found->second.sizes().vec(), ", "));
    copies.emplace_back(parameter.value(), found->second);
    given.erase(found);
  }
  for (const auto& [name, tensor] : given) faults += fmt::format("\n  surplus: {}", name);
  ADDER_CHECK(faults.empty(), "{}: the tensors do not fit the model:{}", where, faults);
  const torch::NoGradGuard no_grad;
  for (auto& [to, from] : copies) to.copy_(from);
}

void load_weights(MambaLMImpl& model, const std::filesystem::path& path) {
  if (weights::is_published_folder(path)) {
    const LoadedModel published = load_published(path);
    return load_parameters(model, published.model->named_parameters().pairs(), path.string());
  }
  const weights::FoundCheckpoint chosen = weights::resolve_checkpoint(path, weights::Which::kLatest);
  for (const std::string& reason : chosen.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  load_parameters(model, chosen.checkpoint.tensors(kModelFile, weights::Access::kMapped),
                  chosen.checkpoint.path().string());
}

namespace {

MambaLMOptions options_of(const weights::CheckpointFolder& folder) {
  const nlohmann::ordered_json& state = folder.state();
  ADDER_CHECK(state.contains("config") && state["config"].is_object() && state["config"].contains("model"),
              "{}: holds no model configuration", folder.path().string());
  MambaLMOptions options;
  core::from_json(options, state["config"]["model"], folder.path().string() + ": config.model");
  return options;
}

}  // namespace

MambaLMOptions model_options(const std::filesystem::path& path) {
  if (weights::is_published_folder(path))
    return options_from_config(weights::PublishedFolder(path).config(), (path / "config.json").string());
  return options_of(weights::resolve_checkpoint(path).checkpoint);
}

LoadedModel load_model(const std::filesystem::path& path, bool best) {
  if (weights::is_published_folder(path)) return load_published(path);
  const weights::FoundCheckpoint chosen =
      weights::resolve_checkpoint(path, best ? weights::Which::kBest : weights::Which::kLatest);
  const weights::CheckpointFolder& folder = chosen.checkpoint;
  LoadedModel loaded{MambaLM(options_of(folder)), folder.state(), folder.path(), chosen.damaged, torch::kFloat};
  load_parameters(*loaded.model, folder.tensors(kModelFile, weights::Access::kMapped), folder.path().string());
  loaded.model->eval();
  return loaded;
}

}  // namespace adder::models
