#include <ATen/Parallel.h>

#include <cmath>

#include "adder/core/check.h"
#include "adder/core/options_io.h"
#include "adder/device/device.h"
#include "adder/models/load.h"
#include "adder/tasks/make_task.h"
#include "adder/tasks/step.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/eval_set.h"
#include "cli/output.h"
#include "cli/text_tokens.h"

namespace adder::cli {
namespace {

struct Arguments {
  std::string checkpoint, tokenizer, dtype = "float32", device = "cpu";
  std::vector<std::string> assignments, sets;
  int64_t batch = 16, limit = 0, threads = 0;
  bool best = false, carry_state = false, json = false;
};

// Options under the prefix "task.", so that assignments read as in training.
struct TaskRoot {
  tasks::TaskOptions task;
  void visit(core::FieldVisitor& v) { v.group("task", task, "what is evaluated"); }
};

void evaluate_sets(const Arguments& a, const models::LoadedModel& loaded) {
  ADDER_CHECK(a.assignments.empty() && !a.carry_state, "--set and --carry-state are for a run's own task, not --task");
  const TextTokens tokens(loaded, a.tokenizer);
  for (const std::string& path : a.sets) {
    const SetScore score = evaluate_set(loaded.model, tokens, path, a.limit);
    const auto count = static_cast<double>(score.examples);
    const auto error_of = [count](double p) { return std::sqrt(p * (1 - p) / std::max(1.0, count - 1)); };
    if (a.json) {
      nlohmann::ordered_json line = {{"checkpoint", loaded.path.string()},
                                     {"task", path},
                                     {"examples", score.examples},
                                     {"acc", score.accuracy},
                                     {"acc_stderr", error_of(score.accuracy)}};
      if (score.normed_accuracy) line["acc_norm"] = *score.normed_accuracy;
      if (score.perplexity) line["perplexity"] = *score.perplexity;
      fmt::print("{}\n", line.dump());
    } else {
      fmt::print("{}: {} examples, acc {:.2f} +- {:.2f} %", path, score.examples, 100 * score.accuracy,
                 100 * error_of(score.accuracy));
      if (score.normed_accuracy)
        fmt::print(", acc_norm {:.2f} +- {:.2f} %", 100 * *score.normed_accuracy,
                   100 * error_of(*score.normed_accuracy));
      if (score.perplexity) fmt::print(", perplexity {:.3f}", *score.perplexity);
      fmt::print("\n");
    }
    flush_output();
  }
}

void run(const Arguments& a) {
  if (a.threads > 0) at::set_num_threads(static_cast<int>(a.threads));
  const torch::Device device = device::parse(a.device);
  models::LoadedModel loaded = models::load_model(a.checkpoint, a.best);
  for (const std::string& reason : loaded.damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
  if (a.dtype == "bfloat16") loaded.model->set_activation_type(torch::kBFloat16);
  loaded.model->to(device);
  if (!a.sets.empty()) return evaluate_sets(a, loaded);
  TaskRoot root;
  ADDER_CHECK(loaded.state["config"].contains("task"), "{}: holds no task of its own; --task names a file of examples",
              loaded.path.string());
  core::from_json(root, {{"task", loaded.state["config"]["task"]}}, loaded.path.string() + ": config");
  for (const std::string& assignment : a.assignments) core::set_option(root, assignment);
  ADDER_CHECK(!a.carry_state || root.task.name == "language_model",
              "--carry-state: only a language_model's windows follow one another, the task is {}", root.task.name);
  const auto task = tasks::make_task(root.task);
  const int64_t vocab = loaded.model->options().vocab_size;
  ADDER_CHECK(task->vocab_size() <= vocab, "{}: the model has {} tokens, too few for the task's {}",
              loaded.path.string(), vocab, task->vocab_size());
  const auto source = task->evaluation(a.batch, a.carry_state);
  const tasks::Evaluation e = tasks::evaluate(*loaded.model, *source);
  const double bits = e.loss / std::log(2.0);
  if (a.json) {
    nlohmann::ordered_json line = {
        {"checkpoint", loaded.path.string()}, {"step", loaded.state["step"]}, {"loss", e.loss},
        {"perplexity", std::exp(e.loss)},     {"accuracy", e.accuracy},       {"targets", e.targets},
        {"sequences", e.sequences},           {"carry_state", a.carry_state}};
    if (task->scores_sequences()) line["sequence_accuracy"] = e.sequence_accuracy;
    if (task->bytes()) line["bits_per_byte"] = bits;
    fmt::print("{}\n", line.dump());
    return;
  }
  fmt::print("{}: step {}\n", loaded.path.string(), loaded.state["step"].dump());
  fmt::print("loss        {:.4f} nats per token over {} tokens in {} rows\n", e.loss, e.targets, e.sequences);
  fmt::print("perplexity  {:.4f}\n", std::exp(e.loss));
  if (task->bytes()) fmt::print("bits/byte   {:.4f}\n", bits);
  fmt::print("accuracy    {:.2f} %\n", 100 * e.accuracy);
  if (task->scores_sequences()) fmt::print("sequences   {:.2f} % right throughout\n", 100 * e.sequence_accuracy);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  auto* command =
      app.add_subcommand("eval", "Evaluate a checkpoint on its task's held-out data, or a model on files of examples");
  auto a = std::make_shared<Arguments>();
  command
      ->add_option("checkpoint", a->checkpoint, "a checkpoint folder, a run's folder, or a folder of published weights")
      ->required();
  command->add_flag("--best", a->best, "of a run's folder take the best checkpoint, not the latest");
  add_texts(*command, "--set", a->assignments, "task.key=value, over the checkpoint's configuration; may be repeated");
  add_texts(*command, "--task", a->sets,
            "a file of JSON lines to score by log-likelihood instead of the run's task; may be repeated");
  add_whole_number(*command, "--limit", a->limit, "examples of each --task; 0: all", 0);
  command->add_option("--tokenizer", a->tokenizer,
                      "for --task a tokenizer.json (default: the one beside the weights; without one text is bytes)");
  add_whole_number(*command, "--batch", a->batch, "rows of a batch", 1);
  command->add_flag("--carry-state", a->carry_state, "language models: carry the state from window to window");
  command->add_option("--dtype", a->dtype, "type of activations")
      ->check(CLI::IsMember({"float32", "bfloat16"}))
      ->capture_default_str();
  add_device(*command, a->device);
  add_threads(*command, a->threads);
  command->add_flag("--json", a->json, "one JSON line");
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
