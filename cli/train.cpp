#include <fmt/format.h>
#include <torch/torch.h>

#include <csignal>
#include <cstdio>

#include "adder/core/options_io.h"
#include "adder/infer/generate.h"
#include "adder/train/trainer.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/run_config.h"

namespace adder::cli {
namespace {

volatile std::sig_atomic_t stop_signal = 0;

// The first Ctrl-C (or SIGTERM) asks the run to save and end; a second one ends at once.
void catch_stop_signals() {
  for (const int number : {SIGINT, SIGTERM})
    std::signal(number, [](int caught) {
      stop_signal = caught;
      std::signal(caught, SIG_DFL);
    });
}

void dry_run(const train::RunConfig& config) {
  const auto task = train::checked_task(config);
  const int64_t parameters = models::parameter_count(config.model);
  const train::MemoryEstimate memory = train::estimate_memory(config, parameters, task->length());
  fmt::print("{}\n", core::to_toml(config));
  fmt::print("# parameters: {} ({})\n", parameters, count_text(parameters));
  fmt::print(
      "# expected memory: {} (parameters {}, gradients {}, optimizer {}, activations {}, logits {}, the copy of a "
      "checkpoint that is being written {}) and LibTorch's own\n",
      bytes_text(memory.total()), bytes_text(memory.parameters), bytes_text(memory.gradients),
      bytes_text(memory.optimizer), bytes_text(memory.activations), bytes_text(memory.logits),
      bytes_text(memory.checkpoint));
}

void print_evaluation(int64_t step, const tasks::Evaluation& e, const tasks::Task& task) {
  fmt::print("step {}: held-out loss {:.4f}, accuracy {:.2f} %", step, e.loss, 100 * e.accuracy);
  if (task.scores_sequences()) fmt::print(", whole sequences {:.2f} %", 100 * e.sequence_accuracy);
  if (task.bytes()) fmt::print(", {:.4f} bits per byte", e.loss / std::log(2.0));
  fmt::print("\n");
  std::fflush(stdout);
}

void print_sample(models::MambaLM& model, int64_t step) {
  infer::GenerateOptions options;
  options.sampling.max_tokens = 200;
  options.sampling.seed = step;
  fmt::print("--- sample at step {} ---\n", step);
  const std::vector<std::vector<int64_t>> prompt = {{'\n'}};
  infer::generate(model, prompt, options, [](int64_t, int64_t token) {
    if (token < 256) std::fputc(static_cast<int>(token), stdout);  // the model may know more tokens than bytes
    return infer::Proceed::kContinue;
  });
  fmt::print("\n---\n");
  std::fflush(stdout);
}

void run(const train::RunConfig& config, bool resume) {
  if (config.train.precision == "bfloat16" && __builtin_cpu_supports("avx512bf16") == 0)
    fmt::print(stderr, "warning: this processor has no bfloat16 products; precision = \"float32\" is faster here\n");
  const auto task = train::checked_task(config);
  train::TrainHooks hooks;
  hooks.stop_requested = [] { return stop_signal != 0; };
  hooks.evaluated = [&](int64_t step, const tasks::Evaluation& evaluation) {
    print_evaluation(step, evaluation, *task);
  };
  if (task->bytes()) hooks.sample = print_sample;
  catch_stop_signals();
  const train::TrainResult result = train::train(config, resume, hooks, task);
  fmt::print("{} after {} steps, {:.0f} tokens/s; checkpoints in {}\n", result.interrupted ? "stopped" : "finished",
             result.steps, result.tokens_per_second, config.train.out);
  if (result.interrupted) throw CLI::RuntimeError(128 + stop_signal);
}

}  // namespace

void add_train_command(CLI::App& app) {
  struct Arguments {
    std::string config, finetune;
    std::vector<std::string> assignments;
    bool resume = false, dry_run = false;
  };
  auto* command = app.add_subcommand("train", "Train a model as a TOML file says");
  auto arguments = std::make_shared<Arguments>();
  command->add_option("config", arguments->config, "configuration file, see configs/")->required();
  add_texts(*command, "--set", arguments->assignments, "key=value, over the file; may be repeated");
  command->add_option("--finetune", arguments->finetune,
                      "a run, a checkpoint or a folder of published weights to begin from, in place of a new model");
  command->add_flag("--resume", arguments->resume, "continue the run in train.out from its newest checkpoint");
  command->add_flag("--dry-run", arguments->dry_run,
                    "print the resolved configuration, parameter count and expected memory");
  command->footer([] { return "Keys:\n" + core::help_table(train::RunConfig()); });
  command->callback([arguments] {
    const train::RunConfig config = read_run_config(arguments->config, arguments->assignments, arguments->finetune);
    arguments->dry_run ? dry_run(config) : run(config, arguments->resume);
  });
}

}  // namespace adder::cli
