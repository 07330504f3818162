#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <optional>
#include <string>

#include "adder/core/options.h"
#include "adder/nn/derived_tensor.h"
#include "adder/nn/sequence.h"

namespace adder::nn {

// The choices of one selective SSM block (arXiv 2312.00752, sections 3.2 to 3.6; the ablations of section 4.6). What is
// valid: docs/guides/configuration.md, [model.mixer].
struct MambaOptions {
  int64_t d_state = 16;          // states per channel, N
  int64_t d_conv = 4;            // width of the causal convolution
  int64_t expand = 2;            // inner channels per model channel, E
  std::string dt_rank = "auto";  // "auto": ceil(d_model / 16); a number; "none": delta does not depend on the input
  bool selective_B = true;       // B depends on the input
  bool selective_C = true;       // C depends on the input
  // "s4d-real", "s4d-lin" or "random": A_n = -(n + 1), -1/2 + n i, or -exp(normal) + normal i; the imaginary
  // part only where complex
  std::string A_init = "s4d-real";
  bool complex = false;  // complex states
  // "euler" or "zoh": Bbar = delta B (euler, as the published models) or the exact zero-order hold (zoh)
  std::string discretization = "euler";
  double dt_min = 1e-3;             // smallest initial step size
  double dt_max = 0.1;              // largest initial step size
  std::string dt_init = "random";   // "random" or "constant": initial weights of the delta projection
  double dt_scale = 1.0;            // their scale, times rank^-1/2
  double dt_init_floor = 1e-4;      // initial step sizes are not below this
  bool conv_bias = true;            // the convolution has a bias
  bool bias = false;                // in_proj and out_proj have biases
  std::string inner_norm = "none";  // "none" or "rms": RMS norm without weights on B, C and the low-rank delta
  double inner_norm_eps = 1e-6;     // its epsilon

  void visit(core::FieldVisitor& v);
  // What dt_rank stands for; 0 for "none".
  int64_t rank(int64_t d_model) const;
};

// The recurrent state of one block; undefined tensors stand for zeros.
struct MambaState {
  torch::Tensor conv;  // (S, K - 1, D) the last inputs of the convolution, oldest first
  torch::Tensor ssm;   // (S, D, N)

  MambaState detach() const;  // without gradient, in the same memory
  MambaState clone() const;   // in memory of its own
};

// The Mamba block: in_proj, causal convolution with SiLU, selective SSM gated by SiLU(z), out_proj. Parameters carry
// the names of the published checkpoints. Initialised on construction; `n_layer` scales out_proj by 1/sqrt(n_layer).
class MambaImpl : public torch::nn::Module {
 public:
  // Throws adder::Error where d_model is below 1, dt_max below dt_min, or dt_rank no rank.
  MambaImpl(int64_t d_model, const MambaOptions& options, int64_t n_layer = 1);

  // x (B, L, d_model) and the state before it, to y (B, L, d_model) and the state after it; any L from 0.
  std::pair<torch::Tensor, MambaState> forward(const torch::Tensor& x, const MambaState& state = {},
                                               const SequenceInfo& sequence = {});

  int64_t d_inner() const { return d_inner_; }              // D = expand d_model, the channels of the scan
  const MambaOptions& options() const { return options_; }  // as they were given

 private:
  torch::Tensor A() const;
  torch::Tensor constant(const torch::Tensor& parameter) const;

  MambaOptions options_;
  int64_t d_model_, d_inner_, rank_, values_;  // values: reals in a per-step B or C, N or 2 N
  torch::Tensor in_weight_, in_bias_, conv_weight_, conv_bias_, x_weight_, dt_weight_, dt_bias_;
  torch::Tensor A_log_, A_imag_, B_, C_, D_, out_weight_, out_bias_;
  mutable DerivedTensor frozen_A_;
};
TORCH_MODULE(Mamba);

}  // namespace adder::nn
