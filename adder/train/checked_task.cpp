#include "adder/core/check.h"
#include "adder/train/trainer.h"

namespace adder::train {

std::shared_ptr<const tasks::Task> checked_task(const RunConfig& config) {
  std::shared_ptr<const tasks::Task> task = tasks::make_task(config.task);
  ADDER_CHECK(task->vocab_size() <= config.model.vocab_size,
              "model.vocab_size must be at least the task's {} tokens, got {}", task->vocab_size(),
              config.model.vocab_size);
  if (config.train.segment > 0) {
    ADDER_CHECK(
        config.model.residual_dropout == 0 && config.model.embedding_dropout == 0,
        "train.segment needs model.residual_dropout = 0 and model.embedding_dropout = 0: the masks of a segment "
        "would not be the same twice");
    ADDER_CHECK(
        config.task.name != "language_model" || !config.task.language_model.reset_at_documents,
        "train.segment needs task.language_model.reset_at_documents = false: rows with documents in them cannot "
        "be cut");
  }
  task->training(config.train.batch, static_cast<uint64_t>(config.train.seed));
  if (can_evaluate(config)) task->evaluation(1, false);
  return task;
}

}  // namespace adder::train
