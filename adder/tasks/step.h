#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// The loss of one batch from the state of its rows. Rows in which documents start are run as packed segments, so that
// no state crosses a document's start.
models::MambaLMImpl::Loss batch_loss(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state);

// What batch_backward() gives.
struct BatchStep {
  torch::Tensor mean;     // () the batch's loss, without gradient
  models::LMState state;  // of its rows behind it, without gradient
};

// Adds `scale` times the gradient of the batch's loss to the parameters' gradients. With segment > 0 no more than so
// many steps of a row are in memory at once: the states are computed forward first, then the row's segments from the
// last to the first, each with the gradient of the state behind it. The gradient is that of the whole row, but for
// rounding. Rows with documents cannot be cut, nor models with dropout.
BatchStep batch_backward(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state, double scale,
                         int64_t segment = 0);

// The figures of an evaluation.
struct Evaluation {
  double loss = 0;               // nats per target
  double accuracy = 0;           // share of targets predicted
  double sequence_accuracy = 0;  // share of rows whose targets are all predicted
  int64_t targets = 0;           // that were scored
  int64_t sequences = 0;         // rows
};

// Goes once through the source, without gradients and dropout.
Evaluation evaluate(models::MambaLMImpl& model, BatchSource& source);

}  // namespace adder::tasks
