#include <charconv>

#include "adder/core/check.h"
#include "adder/nn/mamba.h"

namespace adder::nn {

void MambaOptions::visit(core::FieldVisitor& v) {
  v.field("d_state", d_state, "states per channel, N", {.min = 1, .max = 65536});
  v.field("d_conv", d_conv, "width of the causal convolution", {.min = 1, .max = 65536});
  v.field("expand", expand, "inner channels per model channel, E", {.min = 1, .max = 1024});
  v.field("dt_rank", dt_rank,
          "rank of the delta projection: auto (d_model / 16, rounded up), a number, or none (delta constant)");
  v.field("selective_B", selective_B, "B depends on the input");
  v.field("selective_C", selective_C, "C depends on the input");
  v.choice("A_init", A_init,
           "A_n = -(n + 1), -1/2 + n i, or -exp(normal) + normal i; the imaginary part only where complex",
           {"s4d-real", "s4d-lin", "random"});
  v.field("complex", complex, "complex states");
  v.choice("discretization", discretization,
           "Bbar = delta B (euler, as the published models) or the exact zero-order hold (zoh)", {"euler", "zoh"});
  v.field("dt_min", dt_min, "smallest initial step size", {.min = 0, .open_min = true});
  v.field("dt_max", dt_max, "largest initial step size", {.min = 0, .open_min = true});
  v.choice("dt_init", dt_init, "initial weights of the delta projection", {"random", "constant"});
  v.field("dt_scale", dt_scale, "their scale, times rank^-1/2", {.min = 0});
  v.field("dt_init_floor", dt_init_floor, "initial step sizes are not below this", {.min = 0, .open_min = true});
  v.field("conv_bias", conv_bias, "the convolution has a bias");
  v.field("bias", bias, "in_proj and out_proj have biases");
  v.choice("inner_norm", inner_norm, "RMS norm without weights on B, C and the low-rank delta", {"none", "rms"});
  v.field("inner_norm_eps", inner_norm_eps, "its epsilon", {.min = 0});
}

int64_t MambaOptions::rank(int64_t d_model) const {
  if (dt_rank == "auto") return (d_model + 15) / 16;
  if (dt_rank == "none") return 0;
  int64_t value = 0;
  const char* end = dt_rank.data() + dt_rank.size();
  const auto [stop, error] = std::from_chars(dt_rank.data(), end, value);
  ADDER_CHECK(error == std::errc() && stop == end && value >= 1,
              "dt_rank must be \"auto\", \"none\" or a whole number >= 1, got \"{}\"", dt_rank);
  return value;
}

}  // namespace adder::nn
