#include "adder/train/trainer.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <deque>
#include <filesystem>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/options_io.h"
#include "adder/data/prefetcher.h"
#include "adder/device/device.h"
#include "adder/models/load.h"
#include "adder/train/checkpoint.h"
#include "adder/train/device_step.h"
#include "adder/train/metrics.h"
#include "adder/train/nonfinite.h"
#include "adder/weights/checkpoint_folder.h"

namespace adder::train {
namespace {

namespace fs = std::filesystem;

class Run {
 public:
  Run(const RunConfig& config, bool resume, const TrainHooks& hooks, std::shared_ptr<const tasks::Task> task)
      : config_(config),
        options_(config.train),
        hooks_(hooks),
        folder_(options_.out),
        device_(device::parse(options_.device)),
        task_(task ? std::move(task) : checked_task(config)),
        source_(task_->training(options_.batch, static_cast<uint64_t>(options_.seed))) {
    ADDER_CHECK(!folder_.empty(), "train.out must name a folder, got \"\"");
    if (options_.threads > 0) at::set_num_threads(static_cast<int>(options_.threads));
    torch::manual_seed(static_cast<uint64_t>(options_.seed));
    model_ = models::MambaLM(config.model);
    if (options_.precision == "bfloat16") model_->set_activation_type(torch::kBFloat16);
    model_->set_recompute(nn::parse_recompute(options_.recompute));
    if (!resume) begin_with_weights();
    model_->to(device_);
    optimizer_.emplace(*model_, options_.optimizer);
    if (device_.is_cuda())
      device_step_.emplace(model_, *optimizer_, options_.accumulate, carries_state(), device_, options_.segment);
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
    data_before_ = state_.data;
    if (!state_.data.is_null()) source_->seek(state_.data);
    if (device_step_) device_step_->set_carried(state_.carried);
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
    int64_t tokens = 0, all_tokens = 0;  // of the step, and of the run up to it
  };

  // What has been done in a step that has been started; figures come with it on the CPU, later from a GPU.
  struct StartedStep {
    int64_t step = 0, tokens = 0;  // after it
    double lr = 0;
    nlohmann::json data;                    // position behind it
    std::vector<tasks::TaskBatch> batches;  // on a GPU: until the step is known to be well
  };

  TrainResult run_steps() {
    data::Prefetcher<tasks::TaskBatch> batches(
        [this] {
          std::optional<tasks::TaskBatch> batch = source_->next();
          if (batch) batch->input = device::pinned(batch->input, device_);
          if (batch) batch->target = device::pinned(batch->target, device_);
          return batch;
        },
        options_.prefetch);
    progress_.emplace(state_.step, options_.steps);
    model_->train();
    log_begin_ = Clock::now();
    while (state_.step < options_.steps) {
      const double lr = learning_rate(options_.optimizer, state_.step, options_.steps);
      if (device_step_) {
        start_step(batches, lr);
      } else {
        const StepFigures figures = step(batches, lr);
        finished(figures, lr, state_.step);
      }
      // What follows needs the weights of this very step, and time that is not the step's.
      const bool pause = due(options_.eval_every) || (due(options_.sample_every) && hooks_.sample) ||
                         due(options_.checkpoint_every) || state_.step == options_.steps;
      result_.interrupted = state_.step < options_.steps && hooks_.stop_requested && hooks_.stop_requested();
      collect(pause || result_.interrupted);
      if (!pause && !result_.interrupted) continue;
      result_.seconds += seconds_since(log_begin_);
      log_seconds_ += seconds_since(log_begin_);
      if (due(options_.eval_every)) evaluate();
      if (due(options_.sample_every) && hooks_.sample) {
        progress_->interrupt();
        model_->eval();
        hooks_.sample(model_, state_.step);
        model_->train();
      }
      if (due(options_.checkpoint_every) || result_.interrupted) save();
      if (result_.interrupted) break;
      log_begin_ = Clock::now();
    }
    if (!result_.interrupted && state_.step > first_step_) {
      if (evaluated_step_ != state_.step) evaluate();
      save();
    }
    writer_.finish();
    progress_->interrupt();
    result_.steps = state_.step;
    result_.tokens_per_second = result_.seconds > 0 ? static_cast<double>(tokens_here_) / result_.seconds : 0;
    return result_;
  }

  // A step's figures have come: they go into the mean that is logged.
  void finished(const StepFigures& figures, double lr, int64_t step) {
    tokens_here_ += figures.tokens;
    logged_loss_ += figures.loss;
    ++logged_steps_;
    const double now = seconds_since(log_begin_);
    if (step % options_.log_every == 0 || step == options_.steps) {
      const double steps = static_cast<double>(logged_steps_);
      metrics_->write({{"step", step},
                       {"tokens", figures.all_tokens},
                       {"loss", logged_loss_ / steps},
                       {"lr", lr},
                       {"grad_norm", figures.norm},
                       {"step_ms", 1e3 * (log_seconds_ + now) / steps}});
      logged_loss_ = 0;
      logged_steps_ = 0;
      result_.seconds += now;
      log_seconds_ = 0;
      log_begin_ = Clock::now();
    }
    const double seconds = result_.seconds + seconds_since(log_begin_);
    progress_->update(step, figures.loss, lr, static_cast<double>(tokens_here_) / seconds);
  }

  // On a GPU: queues a step, and takes it for done until its figures say otherwise.
  void start_step(data::Prefetcher<tasks::TaskBatch>& batches, double lr) {
    StartedStep started;
    for (int64_t i = 0; i < options_.accumulate; ++i) {
      started.batches.push_back(*batches.next());
      started.tokens += started.batches.back().input.numel();
    }
    started.data = started.batches.back().after;
    started.lr = lr;
    if (device_step_->pending() == device_step_->most_pending()) take_figures();
    device_step_->launch(started.batches, lr);
    started.step = ++state_.step;
    state_.tokens += started.tokens;
    state_.data = started.data;
    started_.push_back(std::move(started));
  }

  // Takes the figures that have come, or waits for all.
  void collect(bool all) {
    while (device_step_ && device_step_->pending() > 0 && (all || device_step_->ready())) take_figures();
  }

  void take_figures() {
    const DeviceStep::Figures figures = device_step_->take();
    const StartedStep started = std::move(started_.front());
    started_.pop_front();
    if (figures.stopped) {
      // The steps after it have changed nothing either.
      for (const StartedStep& later : started_) state_.tokens -= later.tokens;
      state_.tokens -= started.tokens;
      state_.step = started.step - 1;
      state_.data = data_before_;
      started_.clear();
      while (device_step_->pending() > 0) device_step_->take();
      tasks::TaskBatch batch = started.batches.back();
      batch.input = batch.input.to(device_);
      batch.target = batch.target.to(device_);
      const bool loss = !std::isfinite(figures.loss);
      stop_nonfinite(loss ? "loss" : "gradient norm", loss ? figures.loss : figures.norm, batch, {});
    }
    data_before_ = started.data;
    int64_t later = 0;
    for (const StartedStep& one : started_) later += one.tokens;
    finished({figures.loss, figures.norm, started.tokens, state_.tokens - later}, started.lr, started.step);
  }

  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }

  StepFigures step(data::Prefetcher<tasks::TaskBatch>& batches, double lr) {
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
      const auto loss =
          tasks::batch_backward(*model_, batch, before, 1 / static_cast<double>(options_.accumulate), options_.segment);
      const double value = loss.mean.item<double>();
      if (!std::isfinite(value)) stop_nonfinite("loss", value, batch, before);
      carried = loss.state;
      figures.loss += value / static_cast<double>(options_.accumulate);
      figures.tokens += batch.input.numel();
    }
    figures.norm = optimizer_->gradient_norm();
    if (!std::isfinite(figures.norm)) stop_nonfinite("gradient norm", figures.norm, batch, before);
    optimizer_->step(lr, figures.norm);
    state_.data = position;
    if (carries_state()) state_.carried = carried;
    ++state_.step;
    state_.tokens += figures.tokens;
    figures.all_tokens = state_.tokens;
    step_generator_ = torch::Tensor();
    return figures;
  }

  [[noreturn]] void stop_nonfinite(const char* what, double value, const tasks::TaskBatch& batch,
                                   const models::LMState& before) {
    progress_->interrupt();
    if (step_generator_.defined()) generator().set_state(step_generator_);  // the same dropout masks
    const std::string where = first_nonfinite(*model_, batch, before);
    if (step_generator_.defined()) generator().set_state(step_generator_);
    save();
    writer_.finish();
    fail(
        "training stopped in step {}: the {} is {}; first not finite: {}. The weights of the step before are saved in "
        "{}",
        state_.step + 1, what, value, where, checkpoint_path().string());
  }

  void evaluate() {
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
    progress_->interrupt();
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
    try {
      collect(true);  // a step that was not finite has changed nothing, and neither have those after it
    } catch (...) {
    }
    if (state_.step == first_step_) return;
    try {
      writer_.finish();
    } catch (...) {
    }
    try {
      if (step_generator_.defined()) generator().set_state(step_generator_);
      save();
      writer_.finish();
    } catch (...) {
    }
  }

  bool carries_state() const {
    return config_.task.name == "language_model" && config_.task.language_model.windows == "carried";
  }
  at::Generator device_generator() const { return at::Generator(at::globalContext().defaultGenerator(device_)); }
  static at::Generator generator() { return at::Generator(at::detail::getDefaultCPUGenerator()); }

  // Copies everything now, and goes on while it is written.
  void write(const fs::path& path) {
    writer_.finish();
    state_.generator = generator().get_state();
    if (device_step_) {
      state_.device_generator = device_generator().get_state();
      if (carries_state()) state_.carried = device_step_->carried();
    }
    writer_.write(std::make_shared<const Snapshot>(config_, *model_, *optimizer_, state_), path, state_.step);
  }

  void begin_with_weights() {
    if (!options_.init_from.empty()) models::load_weights(*model_, options_.init_from);
  }

  void restore() {
    const auto latest = weights::latest_checkpoint(folder_);
    if (!latest) {
      fmt::print(stderr, "{}: no checkpoint yet, starting from step 0\n", folder_.string());
      begin_with_weights();
      return;
    }
    for (const std::string& reason : latest->damaged) fmt::print(stderr, "skipping a damaged checkpoint: {}\n", reason);
    state_ = load_run(latest->checkpoint, config_, *model_, *optimizer_);
    saved_step_ = state_.step;
    generator().set_state(state_.generator);
    if (device_.is_cuda() && state_.device_generator.defined()) device_generator().set_state(state_.device_generator);
    fmt::print(stderr, "resuming from {} (step {})\n", latest->checkpoint.path().string(), state_.step);
  }

  const RunConfig config_;
  const TrainOptions& options_ = config_.train;
  const TrainHooks& hooks_;
  const fs::path folder_;
  const at::Device device_;
  std::shared_ptr<const tasks::Task> task_;
  std::unique_ptr<tasks::BatchSource> source_;
  std::optional<core::FolderLock> lock_;
  models::MambaLM model_{nullptr};
  std::optional<AdamW> optimizer_;
  std::optional<DeviceStep> device_step_;
  std::deque<StartedStep> started_;
  nlohmann::json data_before_;  // position behind the last step whose figures have come
  std::optional<MetricsFile> metrics_;
  std::optional<Progress> progress_;
  RunState state_;
  TrainResult result_;
  torch::Tensor step_generator_;  // in a step: the generator's state before it
  std::chrono::steady_clock::time_point log_begin_;
  double logged_loss_ = 0, log_seconds_ = 0;
  int64_t logged_steps_ = 0;
  int64_t first_step_ = 0, tokens_here_ = 0, evaluated_step_ = -1, saved_step_ = -1;
  CheckpointWriter writer_{folder_, options_.keep_checkpoints};
};

}  // namespace

TrainResult train(const RunConfig& config, bool resume, const TrainHooks& hooks,
                  std::shared_ptr<const tasks::Task> task) {
  const at::Device device = device::parse(config.train.device);
  try {
    return Run(config, resume, hooks, std::move(task)).loop();
  } catch (const c10::OutOfMemoryError& error) {
    const std::string text = error.what_without_backtrace();
    const device::Memory memory = device::memory(device);
    fail(
        "training ran out of memory on {}, which has {:.1f} GB in all and {:.1f} GB free: {}. A smaller train.batch "
        "needs less (now {}; train.accumulate makes up for it), as do train.precision = \"bfloat16\", train.recompute "
        "= "
        "\"mixer\" and train.segment for long rows",
        config.train.device, static_cast<double>(memory.total) * 1e-9, static_cast<double>(memory.free) * 1e-9,
        text.substr(0, text.find(" See documentation")), config.train.batch);
  }
}

}  // namespace adder::train
