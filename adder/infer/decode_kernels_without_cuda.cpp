#include "adder/core/error.h"
#include "adder/infer/decode_kernels.h"

namespace adder::infer {

std::function<void()> fused_step(const models::MambaLM&, const torch::Tensor&, const torch::Tensor&,
                                 const models::LMState&) {
  return {};
}

void sample_on_device(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const SamplingOptions&,
                      const torch::Tensor&) {
  fail("sampling on a GPU needs CUDA, which this build has not");
}

}  // namespace adder::infer
