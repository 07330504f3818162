#include "adder/infer/generate.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <fstream>
#include <iostream>

#include "adder/core/error.h"
#include "adder/core/options_io.h"
#include "adder/models/load.h"
#include "cli/commands.h"

namespace adder::cli {
namespace {

struct Arguments {
  std::string checkpoint, prompt_file, dtype = "float32";
  std::vector<std::string> prompts, assignments;
  int64_t samples = 1, threads = 0;
  bool best = false, quiet = false;
};

std::vector<int64_t> byte_tokens(const std::string& text) {
  std::vector<int64_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string read_prompt(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  ADDER_CHECK(in.good(), "cannot read the prompt file '{}'", path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Byte models stop at nothing by default; a prompt of no bytes begins as after a line's end.
infer::GenerateOptions options_of(const Arguments& a) {
  infer::GenerateOptions options;
  options.start_token = '\n';
  for (const std::string& assignment : a.assignments) core::set_option(options, assignment);
  return options;
}

void run(const Arguments& a) {
  if (a.threads > 0) at::set_num_threads(static_cast<int>(a.threads));
  const infer::GenerateOptions options = options_of(a);
  models::LoadedModel loaded = models::load_model(a.checkpoint, a.best);
  for (const std::string& reason : loaded.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  ADDER_CHECK(loaded.model->options().vocab_size == 256,
              "{}: text goes in and out as bytes, so the model must have 256 tokens, got {}", loaded.path.string(),
              loaded.model->options().vocab_size);
  if (a.dtype != "float32") loaded.model->cast_weights(a.dtype == "bfloat16" ? torch::kBFloat16 : torch::kHalf);

  std::vector<std::string> texts = a.prompts;
  if (!a.prompt_file.empty()) texts.push_back(read_prompt(a.prompt_file));
  if (texts.empty()) texts.emplace_back();
  std::vector<std::vector<int64_t>> prompts;
  for (const std::string& text : texts)
    for (int64_t i = 0; i < a.samples; ++i) prompts.push_back(byte_tokens(text));

  // One row is streamed as it comes; several are printed when all are done, lest they mix.
  const bool stream = prompts.size() == 1;
  if (stream) std::cout << texts[0] << std::flush;
  const infer::Generation out = infer::generate(loaded.model, prompts, options, [&](int64_t, int64_t token) {
    if (stream) std::cout << static_cast<char>(token) << std::flush;
    return std::cout.good() ? infer::Proceed::kContinue : infer::Proceed::kStopAll;
  });
  if (stream) std::cout << "\n";
  for (size_t i = 0; !stream && i < out.rows.size(); ++i) {
    std::cout << "=== " << i + 1 << " ===\n" << texts[i / static_cast<size_t>(a.samples)];
    for (const int64_t token : out.rows[i].tokens) std::cout << static_cast<char>(token);
    std::cout << "\n";
  }
  std::cout.flush();
  if (!a.quiet)
    fmt::print(stderr, "prompt: {} tokens, {:.0f} tokens/s; generated: {} tokens, {:.0f} tokens/s\n", out.prompt_tokens,
               static_cast<double>(out.prompt_tokens) / std::max(out.prompt_seconds, 1e-9), out.decode_tokens,
               static_cast<double>(out.decode_tokens) / std::max(out.decode_seconds, 1e-9));
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "Continue a prompt with a checkpoint's model");
  auto a = std::make_shared<Arguments>();
  command->add_option("checkpoint", a->checkpoint, "a checkpoint folder, or a run's folder")->required();
  command->add_flag("--best", a->best, "of a run's folder take the best checkpoint, not the latest");
  command->add_option("--prompt", a->prompts, "text to continue; may be repeated");
  command->add_option("--prompt-file", a->prompt_file, "a file with a text to continue");
  command->add_option("--samples", a->samples, "continuations of each prompt")->check(CLI::PositiveNumber);
  command->add_option("--set", a->assignments, "key=value of the sampling, see below; may be repeated");
  command->add_option("--dtype", a->dtype, "type of weights and activations")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  command->add_option("--threads", a->threads, "processor threads; 0: all")->check(CLI::NonNegativeNumber);
  command->add_flag("--quiet", a->quiet, "no speeds on stderr");
  command->footer([] { return "Sampling keys:\n" + core::help_table(infer::GenerateOptions()); });
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
