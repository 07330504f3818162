#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "adder/tasks/step.h"
#include "adder/train/options.h"

namespace adder::train {

// What train() calls; each may be empty.
struct TrainHooks {
  // Called every train.sample_every steps, with the model in evaluation mode.
  std::function<void(models::MambaLM&, int64_t step)> sample;
  // Asked after each step: true ends the run with a checkpoint.
  std::function<bool()> stop_requested;
  // Called after each evaluation.
  std::function<void(int64_t step, const tasks::Evaluation&)> evaluated;
};

// How a run ended.
struct TrainResult {
  int64_t steps = 0;                      // steps done in all
  bool interrupted = false;               // stop_requested said so
  std::optional<tasks::Evaluation> last;  // the last evaluation, where there was one
  double seconds = 0;                     // of training steps in this call
  double tokens_per_second = 0;           // over those seconds
};

// The task of a run, which can be trained and evaluated with these options. Throws what train() would throw because of
// the task or its data: missing or unreadable files, text too short for its windows, a vocabulary smaller than the
// task's. Writes nothing.
std::shared_ptr<const tasks::Task> checked_task(const RunConfig& config);

// Trains in the folder train.out, which it creates and locks: config.toml, metrics.jsonl, checkpoints step-NNNNNNNN and
// `best` (lowest evaluation loss). With `resume` it continues from the newest checkpoint that is whole, bit-equal to a
// run that never stopped; without, a folder that holds a run is an error. A loss or gradient that is not finite is an
// adder::Error naming the step and the first part of the model concerned; the weights are those before that step, and
// are saved. `task`: what checked_task(config) gave, so that its data are not read again.
TrainResult train(const RunConfig& config, bool resume, const TrainHooks& hooks,
                  std::shared_ptr<const tasks::Task> task = nullptr);

}  // namespace adder::train
