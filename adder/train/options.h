#pragma once

#include <cstdint>
#include <string>

#include "adder/models/mamba_lm.h"
#include "adder/tasks/make_task.h"

namespace adder::train {

struct OptimizerOptions {
  double lr = 1e-3;
  double min_lr = 0;
  std::string schedule = "constant";
  int64_t warmup_steps = 0;
  int64_t decay_steps = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double clip = 1.0;

  void visit(core::FieldVisitor& v);
};

struct TrainOptions {
  std::string out = "runs/run";
  std::string init_from;
  int64_t seed = 0;
  int64_t steps = 1000;
  int64_t batch = 8;
  int64_t accumulate = 1;
  std::string device = "cpu";
  std::string precision = "float32";
  std::string recompute = "none";
  int64_t segment = 0;
  OptimizerOptions optimizer;
  int64_t log_every = 10;
  int64_t eval_every = 0;
  int64_t eval_batch = 0;
  int64_t sample_every = 0;
  int64_t checkpoint_every = 0;
  int64_t keep_checkpoints = 2;
  int64_t threads = 0;
  int64_t prefetch = 4;

  void visit(core::FieldVisitor& v);
};

// Everything that a run depends on; a TOML file in configs/ names what differs from these defaults.
struct RunConfig {
  tasks::TaskOptions task;
  models::MambaLMOptions model;
  TrainOptions train;

  void visit(core::FieldVisitor& v);
};

// Whether the task has held-out data: a language model without held-out text has nothing to be evaluated on.
bool can_evaluate(const RunConfig& config);

// The learning rate of step `step` (from 0) of `steps`: linear warm-up to lr, then constant, linear or cosine down to
// min_lr.
double learning_rate(const OptimizerOptions& options, int64_t step, int64_t steps);

// What `adder train --dry-run` tells: an estimate of the largest memory in bytes, by part.
struct MemoryEstimate {
  int64_t parameters, gradients, optimizer, activations, logits;
  int64_t checkpoint;  // the copy that is written while training goes on
  int64_t total() const { return parameters + gradients + optimizer + activations + logits + checkpoint; }
};
MemoryEstimate estimate_memory(const RunConfig& config, int64_t parameter_count, int64_t row_length);

}  // namespace adder::train
