#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// The loss of one batch from the state of its rows. Rows in which documents start are run as packed segments, so that
// no state crosses a document's start.
models::MambaLMImpl::Loss batch_loss(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state);

struct Evaluation {
  double loss = 0;               // nats per target
  double accuracy = 0;           // share of targets predicted
  double sequence_accuracy = 0;  // share of rows whose targets are all predicted
  int64_t targets = 0;
  int64_t sequences = 0;
};

// Goes once through the source, without gradients and dropout.
Evaluation evaluate(models::MambaLMImpl& model, BatchSource& source);

}  // namespace adder::tasks
