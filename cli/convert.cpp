#include <filesystem>
#include <memory>
#include <optional>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"
#include "adder/models/gguf.h"
#include "adder/models/published.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/text_tokens.h"

namespace adder::cli {
namespace {
namespace fs = std::filesystem;

struct Arguments {
  std::string from, to, format, dtype, tokenizer;
  bool best = false, accept_norm_eps = false;
};

torch::ScalarType type_of(const Arguments& a, torch::ScalarType stored) {
  if (a.dtype.empty()) return stored == torch::kBFloat16 || stored == torch::kHalf ? stored : torch::kFloat;
  return a.dtype == "bfloat16" ? torch::kBFloat16 : a.dtype == "float16" ? torch::kHalf : torch::kFloat;
}

// What lies beside published weights and does not depend on their form.
std::vector<std::pair<std::string, fs::path>> files_besides(const Arguments& a, const models::LoadedModel& loaded) {
  std::vector<std::pair<std::string, fs::path>> files;
  const fs::path tokenizer = a.tokenizer.empty() ? tokenizer_of(loaded) : fs::path(a.tokenizer);
  if (!tokenizer.empty()) files.emplace_back("tokenizer.json", tokenizer);
  for (const char* name :
       {"tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "generation_config.json"}) {
    std::error_code error;
    if (fs::is_regular_file(loaded.path / name, error)) files.emplace_back(name, loaded.path / name);
  }
  return files;
}

// For llama.cpp: the tokenizer beside the weights or the one that is named, or bytes where the model's tokens are
// these.
std::optional<weights::GgufTokenizer> tokenizer_for(const Arguments& a, const models::LoadedModel& loaded) {
  const fs::path path = a.tokenizer.empty() ? tokenizer_of(loaded) : fs::path(a.tokenizer);
  const int64_t rows = loaded.model->options().vocab_size;
  if (!path.empty()) {
    const core::MappedFile file(path);
    const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    return weights::tokenizer_from_json(core::parse_json_sorted(text, path.string()), rows);
  }
  try {
    check_bytes(loaded);
  } catch (const Error&) {
    return std::nullopt;  // llama.cpp then runs on token ids
  }
  return weights::byte_tokenizer(rows);
}

void write_gguf(const Arguments& a, const models::LoadedModel& loaded, torch::ScalarType type) {
  std::error_code error;
  ADDER_CHECK(!fs::exists(a.to, error), "{}: is there already; nothing is written over", a.to);
  const std::optional<weights::GgufTokenizer> tokenizer = tokenizer_for(a, loaded);
  if (!tokenizer)
    fmt::print(stderr,
               "no tokenizer.json beside the weights (--tokenizer names one): llama.cpp will know token ids only\n");
  models::GgufOptions options;
  options.type = type;
  options.tokenizer = tokenizer ? &*tokenizer : nullptr;
  options.name = fs::absolute(a.from).lexically_normal().filename().string();
  options.accept_norm_eps = a.accept_norm_eps;
  models::save_gguf(*loaded.model, a.to, options);
}

void run(const Arguments& a) {
  const models::LoadedModel loaded = models::load_model(a.from, a.best);
  for (const std::string& reason : loaded.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  const torch::ScalarType type = type_of(a, loaded.stored);
  if (a.format == "gguf") {
    write_gguf(a, loaded, type);
  } else {
    models::SaveOptions options;
    options.format =
        a.format == "original" ? models::PublishedFormat::kOriginal : models::PublishedFormat::kTransformers;
    options.type = type;
    options.besides = files_besides(a, loaded);
    models::save_published(*loaded.model, a.to, options);
  }
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
  command->add_option("to", a->to, "what to write, a folder or a .gguf file; must not be there")->required();
  command
      ->add_option("--format", a->format,
                   "original: mamba_ssm (pytorch_model.bin); hf: transformers (safetensors); gguf: llama.cpp")
      ->required()
      ->check(CLI::IsMember({"original", "hf", "gguf"}));
  command->add_option("--dtype", a->dtype, "type of the large matrices (default: as stored)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command->add_option("--tokenizer", a->tokenizer, "a tokenizer.json to go with it (default: the model's own)");
  command->add_flag("--accept-norm-eps", a->accept_norm_eps,
                    "gguf: write FalconMamba though llama.cpp takes one epsilon for all norms");
  command->add_flag("--best", a->best, "of a run's folder take the best checkpoint, not the latest");
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
