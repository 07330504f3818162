#pragma once

#include "adder/models/mamba_lm.h"

namespace adder::infer {

// Dropout off, and the mode as it was at the end.
class EvaluationMode {
 public:
  explicit EvaluationMode(models::MambaLM& model) : model_(model), training_(model->is_training()) {
    if (training_) model_->eval();
  }
  ~EvaluationMode() {
    if (training_) model_->train();
  }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  models::MambaLM& model_;
  bool training_;
};

}  // namespace adder::infer
