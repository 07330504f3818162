#pragma once

#include <string>

#include "adder/tasks/step.h"

namespace adder::train {

// Runs a batch again and names the first part of the model whose output is not finite, or else, after a backward pass,
// the last part whose gradient is not (the first that the backward pass reaches).
std::string first_nonfinite(models::MambaLMImpl& model, const tasks::TaskBatch& batch, const models::LMState& state);

}  // namespace adder::train
