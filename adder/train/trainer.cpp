#include "adder/train/trainer.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <future>

#include "adder/core/error.h"
#include "adder/core/files.h"
#include "adder/core/options_io.h"
#include "adder/data/prefetcher.h"
#include "adder/train/checkpoint.h"
#include "adder/train/metrics.h"
#include "adder/train/nonfinite.h"
#include "adder/weights/checkpoint_folder.h"

namespace adder::train {
namespace {

namespace fs = std::filesystem;

// A language model without held-out text has nothing to be evaluated on.
bool can_evaluate(const RunConfig& config) {
  return config.task.name != "language_model" || config.task.language_model.validation_fraction > 0;
}

class Run {
 public:
  Run(const RunConfig& config, bool resume, const TrainHooks& hooks, std::shared_ptr<const tasks::Task> task)
      : config_(config),
        options_(config.train),
        hooks_(hooks),
        folder_(options_.out),
        task_(task ? std::move(task) : checked_task(config)),
        source_(task_->training(options_.batch, static_cast<uint64_t>(options_.seed))) {
    ADDER_CHECK(!folder_.empty(), "train.out must name a folder, got \"\"");
    if (options_.threads > 0) at::set_num_threads(static_cast<int>(options_.threads));
    torch::manual_seed(static_cast<uint64_t>(options_.seed));
    model_ = models::MambaLM(config.model);
    if (options_.precision == "bfloat16") model_->set_activation_type(torch::kBFloat16);
    optimizer_.emplace(*model_, options_.optimizer);
    // From here on the folder is written to: what can be refused has been.
    fs::create_directories(folder_);
    lock_.emplace(folder_);
    core::clean_leftovers(folder_);
    const fs::path metrics = folder_ / "metrics.jsonl";
    const bool exists =
        (fs::exists(metrics) && fs::file_size(metrics) > 0) || !weights::list_checkpoints(folder_).empty();
    ADDER_CHECK(resume || !exists,
                "{}: holds a run already; continue it with --resume, or choose another folder with --set train.out=...",
                folder_.string());
    if (resume) restore();
    first_step_ = state_.step;
    if (!state_.data.is_null()) source_->seek(state_.data);
    core::write_file_atomically(folder_ / "config.toml", core::to_toml(config_));
    metrics_.emplace(metrics, state_.step);
  }

  TrainResult loop() {
    try {
      return run_steps();
    } catch (...) {
      save_after_error();
      throw;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds_since(Clock::time_point begin) {
    return std::chrono::duration<double>(Clock::now() - begin).count();
  }

  struct StepFigures {
    double loss = 0, norm = 0;
    int64_t tokens = 0;
  };

  TrainResult run_steps() {
    data::Prefetcher<tasks::TaskBatch> batches([this] { return source_->next(); }, options_.prefetch);
    Progress progress(state_.step, options_.steps);
    model_->train();
    double logged_loss = 0, logged_seconds = 0;
    int64_t logged_steps = 0;
    while (state_.step < options_.steps) {
      const auto begin = Clock::now();
      const double lr = learning_rate(options_.optimizer, state_.step, options_.steps);
      const StepFigures figures = step(batches, lr, progress);
      const double seconds = seconds_since(begin);
      result_.seconds += seconds;
      logged_seconds += seconds;
      logged_loss += figures.loss;
      ++logged_steps;
      tokens_here_ += figures.tokens;
      if (state_.step % options_.log_every == 0 || state_.step == options_.steps) {
        const double mean = logged_loss / static_cast<double>(logged_steps);
        metrics_->write({{"step", state_.step},
                         {"tokens", state_.tokens},
                         {"loss", mean},
                         {"lr", lr},
                         {"grad_norm", figures.norm},
                         {"step_ms", 1e3 * logged_seconds / static_cast<double>(logged_steps)}});
        logged_loss = logged_seconds = 0;
        logged_steps = 0;
      }
      progress.update(state_.step, figures.loss, lr, static_cast<double>(tokens_here_) / result_.seconds);
      if (due(options_.eval_every)) evaluate(progress);
      if (due(options_.sample_every) && hooks_.sample) {
        progress.interrupt();
        model_->eval();
        hooks_.sample(model_, state_.step);
        model_->train();
      }
      result_.interrupted = state_.step < options_.steps && hooks_.stop_requested && hooks_.stop_requested();
      if (due(options_.checkpoint_every) || result_.interrupted) save();
      if (result_.interrupted) break;
    }
    if (!result_.interrupted && state_.step > first_step_) {
      if (evaluated_step_ != state_.step) evaluate(progress);
      save();
    }
    finish_writing();
    progress.interrupt();
    result_.steps = state_.step;
    result_.tokens_per_second = result_.seconds > 0 ? static_cast<double>(tokens_here_) / result_.seconds : 0;
    return result_;
  }

  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  StepFigures step(data::Prefetcher<tasks::TaskBatch>& batches, double lr, Progress& progress) {
    StepFigures figures;
    step_generator_ = generator().get_state();
    optimizer_->zero_grad();
    models::LMState carried = state_.carried;
    nlohmann::json position;
    tasks::TaskBatch batch;
    models::LMState before;
    for (int64_t i = 0; i < options_.accumulate; ++i) {
      batch = *batches.next();
      position = batch.after;
      before = batch.fresh ? models::LMState() : carried;
      const auto loss = tasks::batch_loss(*model_, batch, before);
      const double value = loss.mean.item<double>();
      if (!std::isfinite(value)) stop_nonfinite("loss", value, batch, before, progress);
      (loss.mean / static_cast<double>(options_.accumulate)).backward();
      carried = loss.state.detach();
      figures.loss += value / static_cast<double>(options_.accumulate);
      figures.tokens += batch.input.numel();
    }
    figures.norm = optimizer_->gradient_norm();
    if (!std::isfinite(figures.norm)) stop_nonfinite("gradient norm", figures.norm, batch, before, progress);
    optimizer_->step(lr, figures.norm);
    state_.data = position;
    if (config_.task.language_model.windows == "carried") state_.carried = carried;
    ++state_.step;
    state_.tokens += figures.tokens;
    step_generator_ = torch::Tensor();
    return figures;
  }

  [[noreturn]] void stop_nonfinite(const char* what, double value, const tasks::TaskBatch& batch,
                                   const models::LMState& before, Progress& progress) {
    progress.interrupt();
    generator().set_state(step_generator_);  // the same dropout masks
    const std::string where = first_nonfinite(*model_, batch, before);
    generator().set_state(step_generator_);
    save();
    finish_writing();
    fail(
        "training stopped in step {}: the {} is {}; first not finite: {}. The weights of the step before are saved in "
        "{}",
        state_.step + 1, what, value, where, checkpoint_path().string());
  }

  void evaluate(Progress& progress) {
    if (!can_evaluate(config_)) return;
    const int64_t rows = options_.eval_batch > 0 ? options_.eval_batch : options_.batch;
    const auto source = task_->evaluation(rows, false);
    const tasks::Evaluation evaluation = tasks::evaluate(*model_, *source);
    evaluated_step_ = state_.step;
    result_.last = evaluation;
    metrics_->write({{"step", state_.step},
                     {"eval_loss", evaluation.loss},
                     {"eval_accuracy", evaluation.accuracy},
                     {"eval_sequence_accuracy", evaluation.sequence_accuracy}});
    progress.interrupt();
    if (hooks_.evaluated) hooks_.evaluated(state_.step, evaluation);
    if (evaluation.loss < state_.best_loss) {
      state_.best_loss = evaluation.loss;
      write(folder_ / "best");
    }
  }

  fs::path checkpoint_path() const { return folder_ / weights::checkpoint_name(state_.step); }

  void save() {
    if (saved_step_ == state_.step) return;
    saved_step_ = state_.step;
    write(checkpoint_path());
  }

  // The steps since the last checkpoint are not to be lost. What went wrong may go wrong again here; the first error is
  // the one to tell.
  void save_after_error() {
    if (state_.step == first_step_) return;
    try {
      finish_writing();
    } catch (...) {
    }
    try {
      if (step_generator_.defined()) generator().set_state(step_generator_);
      save();
      finish_writing();
    } catch (...) {
    }
  }

  static at::Generator generator() { return at::Generator(at::detail::getDefaultCPUGenerator()); }

  // Copies everything now and writes on a thread of its own; one write at a time.
  void write(const fs::path& path) {
    finish_writing();
    state_.generator = generator().get_state();
    auto snapshot = std::make_shared<const Snapshot>(config_, *model_, *optimizer_, state_);
    writing_ = std::async(std::launch::async, [snapshot, path, folder = folder_, keep = options_.keep_checkpoints,
                                               step = state_.step] {
      snapshot->write(path);
      auto numbered = weights::list_checkpoints(folder);
      std::erase_if(numbered, [step](const auto& c) { return c.step > step; });  // damaged: the run was resumed before
      for (size_t i = 0; i + static_cast<size_t>(keep) < numbered.size(); ++i)
        core::remove_folder_atomically(numbered[i].path);
    });
  }

  void finish_writing() {
    if (writing_.valid()) writing_.get();
  }

  void restore() {
    const auto latest = weights::latest_checkpoint(folder_);
    if (!latest) {
      fmt::print(stderr, "{}: no checkpoint yet, starting from step 0\n", folder_.string());
      return;
    }
    for (const std::string& reason : latest->damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
    state_ = load_run(latest->checkpoint, config_, *model_, *optimizer_);
    saved_step_ = state_.step;
    generator().set_state(state_.generator);
    fmt::print(stderr, "resuming from {} (step {})\n", latest->checkpoint.path().string(), state_.step);
  }

  const RunConfig config_;
  const TrainOptions& options_ = config_.train;
  const TrainHooks& hooks_;
  const fs::path folder_;
  std::shared_ptr<const tasks::Task> task_;
  std::unique_ptr<tasks::BatchSource> source_;
  std::optional<core::FolderLock> lock_;
  models::MambaLM model_{nullptr};
  std::optional<AdamW> optimizer_;
  std::optional<MetricsFile> metrics_;
  RunState state_;
  TrainResult result_;
  torch::Tensor step_generator_;  // in a step: the generator's state before it
  int64_t first_step_ = 0, tokens_here_ = 0, evaluated_step_ = -1, saved_step_ = -1;
  std::future<void> writing_;
};

}  // namespace

std::shared_ptr<const tasks::Task> checked_task(const RunConfig& config) {
  std::shared_ptr<const tasks::Task> task = tasks::make_task(config.task);
  ADDER_CHECK(task->vocab_size() <= config.model.vocab_size,
              "model.vocab_size must be at least the task's {} tokens, got {}", task->vocab_size(),
              config.model.vocab_size);
  task->training(config.train.batch, static_cast<uint64_t>(config.train.seed));
  if (can_evaluate(config)) task->evaluation(1, false);
  return task;
}

TrainResult train(const RunConfig& config, bool resume, const TrainHooks& hooks,
                  std::shared_ptr<const tasks::Task> task) {
  return Run(config, resume, hooks, std::move(task)).loop();
}

}  // namespace adder::train
