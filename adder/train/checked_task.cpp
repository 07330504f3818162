#include "adder/core/error.h"
#include "adder/train/trainer.h"

namespace adder::train {

std::shared_ptr<const tasks::Task> checked_task(const RunConfig& config) {
  std::shared_ptr<const tasks::Task> task = tasks::make_task(config.task);
  ADDER_CHECK(task->vocab_size() <= config.model.vocab_size,
              "model.vocab_size must be at least the task's {} tokens, got {}", task->vocab_size(),
              config.model.vocab_size);
  task->training(config.train.batch, static_cast<uint64_t>(config.train.seed));
  if (can_evaluate(config)) task->evaluation(1, false);
  return task;
}

}  // namespace adder::train
