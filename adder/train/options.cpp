#include "adder/train/options.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "adder/kernels/selective_scan.h"

namespace adder::train {

void OptimizerOptions::visit(core::FieldVisitor& v) {
  v.field("lr", lr, "peak learning rate", {.min = 0, .open_min = true});
  v.field("min_lr", min_lr, "learning rate at the end of a schedule that falls", {.min = 0});
  v.choice("schedule", schedule, "what follows the warm-up", {"constant", "linear", "cosine"});
  v.field("warmup_steps", warmup_steps, "steps in which the learning rate rises from 0", {.min = 0});
  v.field("decay_steps", decay_steps, "last steps, in which the learning rate falls; 0: all after the warm-up",
          {.min = 0});
  v.field("beta1", beta1, "decay of the first moment", {.min = 0, .max = 0.999999});
  v.field("beta2", beta2, "decay of the second moment", {.min = 0, .max = 0.999999});
  v.field("eps", eps, "added to the root of the second moment", {.min = 0, .open_min = true});
  v.field("weight_decay", weight_decay, "decoupled weight decay; not on A_log, D, biases, norms and the embedding",
          {.min = 0});
  v.field("clip", clip, "largest norm of the whole gradient; 0: no clipping", {.min = 0});
}

void TrainOptions::visit(core::FieldVisitor& v) {
  v.field("out", out, "folder of the run: config, metrics, checkpoints");
  v.field("init_from", init_from, "run or checkpoint whose weights a new run begins with; empty: random ones");
  v.field("seed", seed, "seed of the initialisation, the data and dropout", {.min = 0});
  v.field("steps", steps, "optimizer steps", {.min = 0});
  v.field("batch", batch, "rows of a batch", {.min = 1, .max = 1 << 24});
  v.field("accumulate", accumulate, "batches of a step", {.min = 1, .max = 1 << 24});
  v.field("device", device, "cpu, cuda (the first GPU) or cuda:<number>");
  v.choice("precision", precision, "type of activations and products; parameters stay float32",
           {"float32", "bfloat16"});
  v.choice("recompute", recompute,
           "what the backward pass computes again instead of keeping it: each block's mixer, or the whole block",
           {"none", "mixer", "block"});
  v.field("segment", segment,
          "steps of a row that are in memory at once: longer rows are cut, and their gradient is still that of the "
          "whole; 0: whole rows",
          {.min = 0});
  v.group("optimizer", optimizer, "AdamW");
  v.field("log_every", log_every, "steps between two lines of metrics", {.min = 1});
  v.field("eval_every", eval_every, "steps between two evaluations; 0: at the end only", {.min = 0});
  v.field("eval_batch", eval_batch, "rows of an evaluation batch; 0: as in training", {.min = 0, .max = 1 << 24});
  v.field("sample_every", sample_every, "steps between two samples; 0: none", {.min = 0});
  v.field("checkpoint_every", checkpoint_every, "steps between two checkpoints; 0: at the end only", {.min = 0});
  v.field("keep_checkpoints", keep_checkpoints, "the last checkpoints that are kept, beside the best", {.min = 1});
  v.field("threads", threads, "processor threads; 0: all", {.min = 0, .max = 4096});
  v.field("prefetch", prefetch, "batches that are made ahead", {.min = 1, .max = 4096});
}

void RunConfig::visit(core::FieldVisitor& v) {
  v.group("task", task, "what is learnt, from which data");
  v.group("model", model, "the language model");
  v.group("train", train, "how it is trained");
}

bool can_evaluate(const RunConfig& config) {
  return config.task.name != "language_model" || config.task.language_model.validation_fraction > 0;
}

double learning_rate(const OptimizerOptions& o, int64_t step, int64_t steps) {
  if (step < o.warmup_steps) return o.lr * static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
  if (o.schedule == "constant") return o.lr;
  const int64_t falling = o.decay_steps > 0 ? std::min(o.decay_steps, steps) : steps - o.warmup_steps,
                begin = steps - falling;
  const double done =
      falling > 0 ? std::clamp(static_cast<double>(step - begin) / static_cast<double>(falling), 0.0, 1.0) : 1.0;
  const double share = o.schedule == "linear" ? 1 - done : 0.5 * (1 + std::cos(std::numbers::pi * done));
  return o.min_lr + (o.lr - o.min_lr) * share;
}

MemoryEstimate estimate_memory(const RunConfig& config, int64_t parameter_count, int64_t row_length) {
  const models::MambaLMOptions& m = config.model;
  const int64_t activation = config.train.precision == "bfloat16" ? 2 : 4;
  const int64_t segment = config.train.segment > 0 ? std::min(config.train.segment, row_length) : row_length;
  const int64_t tokens = config.train.batch * segment, inner = m.mixer.expand * m.d_model;
  const int64_t values = m.mixer.d_state * (m.mixer.complex ? 2 : 1), rank = m.mixer.rank(m.d_model);
  // Kept per token and block: residual and norm output, the two halves of in_proj, convolution output, delta, scan
  // output, x_proj's output, and the state of every 32nd step.
  const int64_t stream = m.d_model * (4 + activation);
  const int64_t mixer =
      inner * 5 * activation + (rank + 2 * values) * activation + inner * values * 4 / kernels::kScanChunk;
  // What is computed again is there for one block at a time.
  const int64_t kept = config.train.recompute == "none" ? (stream + mixer) * m.n_layer : stream * m.n_layer + mixer;
  // The states between the segments.
  const int64_t states =
      config.train.batch * ((row_length - 1) / segment) * m.n_layer * inner * (values + m.mixer.d_conv - 1) * 4;
  const int64_t logits = std::min<int64_t>(tokens * m.padded_vocab() * 4, int64_t{64} << 20);
  // In bfloat16 each matrix is cast for its product, and the copy is kept for the gradient.
  const int64_t casts = activation == 2 ? parameter_count * 2 : 0;
  return {parameter_count * 4, parameter_count * 4, parameter_count * 8, tokens * kept + states + casts, logits,
          parameter_count * 12};
}

}  // namespace adder::train
