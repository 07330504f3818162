#pragma once

#include <memory>

#include "adder/kernels/decode_step.h"

// One token of each of many sequences through a whole language model, as a few kernels a layer.
namespace adder::kernels::cuda {

// Whether the current device can run a step of this shape with bfloat16 weights, on compute capability 9.0.
bool decode_batch_fits(const DecodeShape& shape);
int64_t decode_batch_workspace_bytes(const DecodeShape& shape);

// A step as decode_step does it, but that the caller chooses the tokens. `layers` (step.layers) is in host memory;
// step.layer is not used. The workspace may hold anything. The same bits each time.
class DecodeBatch {
 public:
  DecodeBatch(const DecodeStep<bfloat16>& step, const DecodeLayer<bfloat16>* layers);
  ~DecodeBatch();
  void run(CudaStream stream) const;

 private:
  struct Launches;
  std::unique_ptr<Launches> launches_;
};

}  // namespace adder::kernels::cuda
