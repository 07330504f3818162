#pragma once

#include <cstdint>
#include <string>

#include "adder/models/mamba_lm.h"
#include "adder/tasks/make_task.h"

namespace adder::train {

// AdamW and its learning rate.
struct OptimizerOptions {
  double lr = 1e-3;                   // peak learning rate
  double min_lr = 0;                  // learning rate at the end of a schedule that falls
  std::string schedule = "constant";  // "constant", "linear" or "cosine": what follows the warm-up
  int64_t warmup_steps = 0;           // steps in which the learning rate rises from 0
  int64_t decay_steps = 0;            // last steps, in which the learning rate falls; 0: all after the warm-up
  double beta1 = 0.9;                 // decay of the first moment
  double beta2 = 0.95;                // decay of the second moment
  double eps = 1e-8;                  // added to the root of the second moment
  double weight_decay = 0.1;          // decoupled weight decay; not on A_log, D, biases, norms and the embedding
  double clip = 1.0;                  // largest norm of the whole gradient; 0: no clipping

  void visit(core::FieldVisitor& v);
};

// How a run goes.
struct TrainOptions {
  std::string out = "runs/run";  // folder of the run: config, metrics, checkpoints
  std::string init_from;         // run or checkpoint whose weights a new run begins with; empty: random ones
  int64_t seed = 0;              // seed of the initialisation, the data and dropout
  int64_t steps = 1000;          // optimizer steps
  int64_t batch = 8;             // rows of a batch
  int64_t accumulate = 1;        // batches of a step
  std::string device = "cpu";    // cpu, cuda (the first GPU) or cuda:<number>
  // "float32" or "bfloat16": type of activations and products; parameters stay float32
  std::string precision = "float32";
  // "none", "mixer" or "block": what the backward pass computes again instead of keeping it: each block's
  // mixer, or the whole block
  std::string recompute = "none";
  // steps of a row that are in memory at once: longer rows are cut, and their gradient is still that of the
  // whole; 0: whole rows
  int64_t segment = 0;
  OptimizerOptions optimizer;    // AdamW
  int64_t log_every = 10;        // steps between two lines of metrics
  int64_t eval_every = 0;        // steps between two evaluations; 0: at the end only
  int64_t eval_batch = 0;        // rows of an evaluation batch; 0: as in training
  int64_t sample_every = 0;      // steps between two samples; 0: none
  int64_t checkpoint_every = 0;  // steps between two checkpoints; 0: at the end only
  int64_t keep_checkpoints = 2;  // the last checkpoints that are kept, beside the best
  int64_t threads = 0;           // processor threads; 0: all
  int64_t prefetch = 4;          // batches that are made ahead

  void visit(core::FieldVisitor& v);
};

// Everything that a run depends on; a TOML file in configs/ names what differs from these defaults.
struct RunConfig {
  tasks::TaskOptions task;       // what is learnt, from which data
  models::MambaLMOptions model;  // the language model
  TrainOptions train;            // how it is trained

  void visit(core::FieldVisitor& v);
};

// Whether the task has held-out data: a language model without held-out text has nothing to be evaluated on.
bool can_evaluate(const RunConfig& config);

// The learning rate of step `step` (from 0) of `steps`: linear warm-up to lr, then constant, linear or cosine down to
// min_lr.
double learning_rate(const OptimizerOptions& options, int64_t step, int64_t steps);

// What `adder train --dry-run` tells: an estimate of the largest memory in bytes, by part.
struct MemoryEstimate {
  int64_t parameters;   // in float32
  int64_t gradients;    // in float32
  int64_t optimizer;    // both moments
  int64_t activations;  // kept for the backward pass
  int64_t logits;       // of a block of rows
  int64_t checkpoint;   // the copy that is written while training goes on
  // The sum of all.
  int64_t total() const { return parameters + gradients + optimizer + activations + logits + checkpoint; }
};
// Of a run of a model of so many parameters, on rows of row_length tokens.
MemoryEstimate estimate_memory(const RunConfig& config, int64_t parameter_count, int64_t row_length);

}  // namespace adder::train
