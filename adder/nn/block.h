#pragma once

#include "adder/nn/mamba.h"
#include "adder/nn/recompute.h"

namespace adder::nn {

// RMSNorm or LayerNorm of the sum of a branch and the residual stream, which stays float32.
class NormImpl : public torch::nn::Module {
 public:
  // kind: "rms" or "layer", as ops::AddNormOptions.
  NormImpl(int64_t width, const std::string& kind, double eps);
  // x (..., width) in any type and residual (..., width) float32 or undefined, to norm(x + residual) in `type` and the
  // sum.
  std::pair<torch::Tensor, torch::Tensor> forward(const torch::Tensor& x, const torch::Tensor& residual,
                                                  torch::ScalarType type);

 private:
  std::string kind_;
  double eps_;
  torch::Tensor weight_, bias_;
};
TORCH_MODULE(Norm);

// Pre-norm residual block: (x, residual) to (mixer(norm(x + residual)), x + residual).
class BlockImpl : public torch::nn::Module {
 public:
  // n_layer: of the whole model, by which the mixer's output projection is scaled; norm and norm_eps as in NormImpl;
  // dropout: of the mixer's output.
  BlockImpl(int64_t d_model, const MambaOptions& mixer, int64_t n_layer, const std::string& norm, double norm_eps,
            double dropout);

  // What forward() gives.
  struct Output {
    torch::Tensor x;         // (B, L, d_model) what the mixer adds to the stream
    torch::Tensor residual;  // (B, L, d_model) float32, the stream without it
    MambaState state;        // after the last step
  };
  // x (B, L, d_model) and residual of the same shape, or undefined in the first block; `type`: of activations.
  Output forward(const torch::Tensor& x, const torch::Tensor& residual, torch::ScalarType type,
                 const MambaState& state = {}, const SequenceInfo& sequence = {},
                 Recompute recompute = Recompute::kNone);

 private:
  double dropout_;
  Norm norm_{nullptr};
  Mamba mixer_{nullptr};
};
TORCH_MODULE(Block);

}  // namespace adder::nn
