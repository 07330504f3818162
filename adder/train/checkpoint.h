#pragma once

#include <filesystem>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>

#include "adder/train/adamw.h"
#include "adder/weights/checkpoint_folder.h"

namespace adder::train {

// Everything a run continues from.
struct RunState {
  int64_t step = 0;                                            // optimizer steps done
  int64_t tokens = 0;                                          // trained on
  nlohmann::json data;                                         // position of the batch source
  double best_loss = std::numeric_limits<double>::infinity();  // of the evaluations
  models::LMState carried;                                     // of training with the state carried over
  torch::Tensor generator;                                     // state of the default random generator (dropout)
  torch::Tensor device_generator;                              // of the GPU's, where training is on one
};

// Copies of all tensors, so that training can go on while a thread writes them.
class Snapshot {
 public:
  // Of everything as it is now.
  Snapshot(const RunConfig& config, const models::MambaLMImpl& model, const AdamW& optimizer, const RunState& state);
  void write(const std::filesystem::path& folder) const;  // as a checkpoint folder, at once

 private:
  nlohmann::ordered_json state_;
  weights::NamedTensors model_, training_;
};

// Writes a run's checkpoints on a thread of its own, one at a time.
class CheckpointWriter {
 public:
  // Of the numbered checkpoints in `run` the last `keep` stay.
  CheckpointWriter(std::filesystem::path run, int64_t keep) : run_(std::move(run)), keep_(keep) {}

  // After finish(). Numbered checkpoints of later steps than `step` are damaged ones, as the run was resumed before
  // them, and do not count.
  void write(std::shared_ptr<const Snapshot> snapshot, const std::filesystem::path& path, int64_t step);
  // Waits for what is being written; throws what went wrong with it.
  void finish();

 private:
  std::filesystem::path run_;
  int64_t keep_;
  std::future<void> writing_;
};

// Loads a checkpoint into a model and optimizer made from `config`. Another model, task or optimizer than the
// checkpoint's is an error that names the first key that differs; the length of the run and what it reports may change.
RunState load_run(const weights::CheckpointFolder& folder, const RunConfig& config, models::MambaLMImpl& model,
                  AdamW& optimizer);

}  // namespace adder::train
