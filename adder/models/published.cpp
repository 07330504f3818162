#include "adder/models/published.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/core/options_io.h"
#include "adder/models/kept_generator.h"
#include "adder/weights/published_folder.h"

namespace adder::models {
namespace {

// Published names to those of the original package, which are ours.
std::string original_name(const std::string& name) {
  const std::string head = "lm_head.", body = "backbone.";
  std::string out = name.starts_with(head) || name.starts_with(body) ? name : body + name;  // a model without its head
  const std::string theirs = "backbone.embeddings.";
  if (out.starts_with(theirs)) out = "backbone.embedding." + out.substr(theirs.size());
  return out;
}

std::string name_for(const std::string& ours, PublishedFormat format) {
  const std::string embedding = "backbone.embedding.";
  return format == PublishedFormat::kTransformers && ours.starts_with(embedding)
             ? "backbone.embeddings." + ours.substr(embedding.size())
             : ours;
}

bool is_large_matrix(const std::string& name) {
  for (const char* suffix :
       {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight", "embedding.weight", "lm_head.weight"})
    if (name.ends_with(suffix)) return true;
  return false;
}

constexpr const char* kHead = "lm_head.weight";
constexpr const char* kEmbedding = "backbone.embedding.weight";

}  // namespace

LoadedModel load_published(const std::filesystem::path& path) {
  const weights::PublishedFolder folder(path);
  const std::string where = path.string();
  const MambaLMOptions options = options_from_config(folder.config(), (path / "config.json").string());
  std::map<std::string, torch::Tensor> tensors;
  double values = 0;
  for (const auto& [name, tensor] : folder.tensors()) {
    ADDER_CHECK(tensor.is_floating_point(), "{}: tensor {} must hold real numbers, got {}", where,
                weights::shown_name(name), c10::toString(tensor.scalar_type()));
    ADDER_CHECK(tensors.emplace(original_name(name), tensor).second, "{}: tensor {} is there twice", where,
                weights::shown_name(name));
    values += static_cast<double>(tensor.numel());
  }
  const auto head = tensors.find(kHead), embedding = tensors.find(kEmbedding);
  if (options.tie_embeddings && head != tensors.end() && embedding != tensors.end()) {
    ADDER_CHECK(head->second.sizes() == embedding->second.sizes() && head->second.equal(embedding->second),
                "{}: the configuration says that the head is the embedding, but {} and {} differ", where, kHead,
                kEmbedding);
    tensors.erase(head);
  }
  // Before a model of any size that a file may name is made.
  const auto expected = static_cast<double>(parameter_count(options));
  ADDER_CHECK(expected <= 2 * values + 1e6,
              "{}: config.json describes a model of {:.3g} parameters, the weights hold {:.3g}", where, expected,
              values);
  const KeptGenerator kept;
  LoadedModel loaded{MambaLM(options), {{"config", {{"model", core::to_json(options)}}}}, path, {}, torch::kFloat};
  if (embedding != tensors.end()) loaded.stored = embedding->second.scalar_type();
  load_parameters(*loaded.model, {tensors.begin(), tensors.end()}, where);
  loaded.model->eval();
  return loaded;
}

void save_published(const MambaLMImpl& model, const std::filesystem::path& path, const SaveOptions& options) {
  weights::PublishedContent content{config_for(model.options(), options.format, options.type), {}, options.besides};
  for (const auto& parameter : model.named_parameters()) {
    const torch::ScalarType type = is_large_matrix(parameter.key()) ? options.type : torch::kFloat;
    content.tensors.emplace_back(name_for(parameter.key(), options.format),
                                 parameter.value().detach().to(torch::kCPU, type));
  }
  // The original package asks for the head by name.
  const bool original = options.format == PublishedFormat::kOriginal;
  if (original && model.options().tie_embeddings)
    for (const auto& [name, tensor] : std::vector(content.tensors))
      if (name == kEmbedding) content.tensors.emplace_back(kHead, tensor);
  weights::write_published_folder(
      path, content, original ? weights::WeightsFile::kTorch : weights::WeightsFile::kSafetensors, options.part_bytes);
}

}  // namespace adder::models
