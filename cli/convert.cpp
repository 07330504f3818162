#include <filesystem>
#include <memory>

#include "adder/core/error.h"
#include "adder/models/published.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace adder::cli {
namespace {
namespace fs = std::filesystem;

struct Arguments {
  std::string from, to, format, dtype;
  bool best = false;
};

torch::ScalarType type_of(const Arguments& a, torch::ScalarType stored) {
  if (a.dtype.empty()) return stored == torch::kBFloat16 || stored == torch::kHalf ? stored : torch::kFloat;
  return a.dtype == "bfloat16" ? torch::kBFloat16 : a.dtype == "float16" ? torch::kHalf : torch::kFloat;
}

// What lies beside published weights and does not depend on their form.
std::vector<fs::path> files_besides(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
                           "merges.txt", "generation_config.json"}) {
    std::error_code error;
    if (fs::is_regular_file(folder / name, error)) files.push_back(folder / name);
  }
  return files;
}

void run(const Arguments& a) {
  const models::LoadedModel loaded = models::load_model(a.from, a.best);
  for (const std::string& reason : loaded.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  models::SaveOptions options;
  options.format = a.format == "original" ? models::PublishedFormat::kOriginal : models::PublishedFormat::kTransformers;
  options.type = type_of(a, loaded.stored);
  options.besides = files_besides(a.from);
  models::save_published(*loaded.model, a.to, options);
  fmt::print("{}: {} parameters from {}\n", a.to, loaded.model->parameter_count(), loaded.path.string());
}

}  // namespace

void add_convert_command(CLI::App& app) {
  auto* command = app.add_subcommand("convert", "Write a model's weights in the form of another program");
  auto a = std::make_shared<Arguments>();
  command
      ->add_option("from", a->from,
                   "a checkpoint folder, a run's folder, or a folder of published weights (config.json)")
      ->required();
  command->add_option("to", a->to, "the folder to write; must not exist or be empty")->required();
  command->add_option("--format", a->format, "original: mamba_ssm (pytorch_model.bin); hf: transformers (safetensors)")
      ->required()
      ->check(CLI::IsMember({"original", "hf"}));
  command->add_option("--dtype", a->dtype, "type of the large matrices (default: as stored)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command->add_flag("--best", a->best, "of a run's folder take the best checkpoint, not the latest");
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
