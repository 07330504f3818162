#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "adder/device/device.h"
#include "adder/tasks/step.h"
#include "adder/train/adamw.h"

namespace adder::train {

// Optimizer steps on a GPU that the host does not wait for: forward, backward, clipping and AdamW are recorded once as
// a CUDA graph, where the shapes of batches do not change, and then started as a whole. A step whose loss or gradient
// norm is not finite changes no weight, and neither do the steps after it: the host finds out when the figures reach
// it.
class DeviceStep {
 public:
  // What a step gave.
  struct Figures {
    double loss;   // nats per target, the mean over its batches
    double norm;   // of the whole gradient, before clipping
    bool stopped;  // this step or one before it was not finite
  };

  // `accumulate` batches make a step; `carry`: the state goes on from batch to batch; segment: as in
  // tasks::batch_backward.
  DeviceStep(models::MambaLM model, AdamW& optimizer, int64_t accumulate, bool carry, at::Device device,
             int64_t segment = 0);

  // Queues a step. Batches lie on the CPU, pinned.
  void launch(const std::vector<tasks::TaskBatch>& batches, double lr);
  int64_t pending() const { return figures_.pending(); }     // steps whose figures have not been taken
  int64_t most_pending() const { return figures_.slots(); }  // how many there may be
  bool ready() const { return figures_.ready(); }            // whether take() need not wait
  Figures take();                                            // of the oldest step, waiting for it

  // The state behind the last step, of training with the state carried over.
  models::LMState carried() const;
  void set_carried(const models::LMState& state);  // what the next step begins from

 private:
  void work(const std::vector<tasks::TaskBatch>& batches, bool update);
  std::vector<tasks::TaskBatch> on_device(const std::vector<tasks::TaskBatch>& batches) const;

  models::MambaLM model_;
  AdamW& optimizer_;
  int64_t accumulate_;
  bool carry_;
  at::Device device_;
  int64_t segment_;
  torch::Tensor lr_, stopped_, latest_;  // (), (), (3)
  device::Readback figures_;
  models::LMState state_;
  std::unique_ptr<device::Graph> graph_;
  std::vector<tasks::TaskBatch> inputs_;  // which the graph reads
};

}  // namespace adder::train
