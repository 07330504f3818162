#include "adder/infer/generate.h"

#include <ATen/Parallel.h>

#include <cstdio>
#include <filesystem>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/options_io.h"
#include "adder/data/compressed_file.h"
#include "adder/device/device.h"
#include "adder/models/load.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/text_tokens.h"

namespace adder::cli {
namespace {

struct Arguments {
  std::string checkpoint, prompt_file, tokenizer, dtype = "float32", device = "cpu";
  std::vector<std::string> prompts, assignments;
  int64_t samples = 1, threads = 0;
  bool best = false, quiet = false;
};

std::string read_prompt(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_fifo(path, error)) return data::read_file(path);  // a pipe cannot be mapped
  const core::MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

constexpr int64_t kBytes = 256;

// The model, which gives logits to bytes alone: what tokens it has beyond them are no text.
models::MambaLM byte_model(const models::LoadedModel& loaded) {
  models::MambaLMOptions options = loaded.model->options();
  if (options.vocab_size == kBytes) return loaded.model;
  options.pad_vocab_size_multiple = options.padded_vocab();  // the same rows
  options.vocab_size = kBytes;
  models::MambaLM model(options);
  models::load_parameters(*model, loaded.model->named_parameters().pairs(), loaded.path.string());
  return model;
}

void print(std::string_view bytes) {
  std::fwrite(bytes.data(), 1, bytes.size(), stdout);
}

void run(const Arguments& a) {
  if (a.threads > 0) at::set_num_threads(static_cast<int>(a.threads));
  const auto assign_to = [&a](infer::GenerateOptions& options) {
    for (const std::string& assignment : a.assignments) core::set_option(options, assignment);
  };
  infer::GenerateOptions options;
  assign_to(options);  // what is wrong with them is told before a model is loaded
  const torch::Device device = device::parse(a.device);
  models::LoadedModel loaded = models::load_model(a.checkpoint, a.best);
  for (const std::string& reason : loaded.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  const TextTokens text_tokens(loaded, a.tokenizer);
  if (text_tokens.bytes()) loaded.model = byte_model(loaded);
  // An empty prompt begins as a text does, and a text's end stops a row.
  options = {};
  options.start_token = text_tokens.start_token();
  if (text_tokens.stop_token()) options.sampling.stop_tokens = {*text_tokens.stop_token()};
  assign_to(options);
  loaded.model->to(device);
  if (a.dtype != "float32") loaded.model->cast_weights(a.dtype == "bfloat16" ? torch::kBFloat16 : torch::kHalf);

  std::vector<std::string> texts = a.prompts;
  if (!a.prompt_file.empty()) texts.push_back(read_prompt(a.prompt_file));
  if (texts.empty()) texts.emplace_back();
  std::vector<std::vector<int64_t>> prompts;
  for (const std::string& text : texts)
    for (int64_t i = 0; i < a.samples; ++i) prompts.push_back(text_tokens.encode(text));

  // One row is streamed as it comes; several are printed when all are done, lest they mix.
  const bool stream = prompts.size() == 1;
  const auto decoder = text_tokens.decoder();
  const auto stream_token = [&decoder](int64_t, int64_t token) {
    print(decoder(token));
    flush_output();
    return infer::Proceed::kContinue;
  };
  if (stream) {
    print(texts[0]);
    flush_output();
  }
  const infer::Generation out =
      infer::generate(loaded.model, prompts, options, stream ? stream_token : infer::TokenCallback());
  if (stream) print(decoder({}));
  int64_t generated = 0;
  for (size_t i = 0; i < out.rows.size(); ++i) {
    const std::vector<int64_t>& tokens = out.rows[i].tokens;
    generated += static_cast<int64_t>(tokens.size());
    if (!stream) {
      print(fmt::format("=== {} ===\n{}", i + 1, texts[i / static_cast<size_t>(a.samples)]));
      const auto row_decoder = text_tokens.decoder();
      for (const int64_t token : tokens) print(row_decoder(token));
      print(row_decoder({}));
    }
    print("\n");
  }
  flush_output();
  // Each row's first token comes from the prompt's pass, so the rate is that of the others.
  if (!a.quiet)
    fmt::print(stderr, "prompt: {} tokens, {:.0f} tokens/s; generated: {} tokens, {:.0f} tokens/s\n", out.prompt_tokens,
               static_cast<double>(out.prompt_tokens) / std::max(out.prompt_seconds, 1e-9), generated,
               static_cast<double>(out.decode_tokens) / std::max(out.decode_seconds, 1e-9));
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto* command = app.add_subcommand("generate", "Continue a prompt with a checkpoint's model");
  auto a = std::make_shared<Arguments>();
  command
      ->add_option("checkpoint", a->checkpoint, "a checkpoint folder, a run's folder, or a folder of published weights")
      ->required();
  command->add_flag("--best", a->best, "of a run's folder take the best checkpoint, not the latest");
  add_texts(*command, "--prompt", a->prompts, "text to continue; may be repeated");
  command->add_option("--prompt-file", a->prompt_file, "a file with a text to continue");
  command->add_option("--tokenizer", a->tokenizer,
                      "a tokenizer.json (default: the one beside the weights; without one text is bytes)");
  add_whole_number(*command, "--samples", a->samples, "continuations of each prompt", 1);
  add_texts(*command, "--set", a->assignments, "key=value of the sampling, see below; may be repeated");
  command->add_option("--dtype", a->dtype, "type of weights and activations")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}))
      ->capture_default_str();
  add_device(*command, a->device);
  add_threads(*command, a->threads);
  command->add_flag("--quiet", a->quiet, "no speeds on stderr");
  command->footer([] { return "Sampling keys:\n" + core::help_table(infer::GenerateOptions()); });
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
