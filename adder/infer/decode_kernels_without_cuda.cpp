#include "adder/core/check.h"
#include "adder/infer/decode_kernels.h"

namespace adder::infer {

std::function<void()> one_kernel_step(const models::MambaLM&, const StepTensors&, const CopiedTokens*) {
  return {};
}
std::function<void()> many_rows_step(const models::MambaLM&, const StepTensors&) {
  return {};
}

void sample_on_device(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const SamplingOptions&,
                      const torch::Tensor&, const CopiedTokens&) {
  fail("sampling on a GPU needs CUDA, which this build has not");
}

}  // namespace adder::infer
