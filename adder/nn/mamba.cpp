#include "adder/nn/mamba.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/nn/linear.h"
#include "adder/nn/parameters.h"
#include "adder/ops/causal_conv1d.h"
#include "adder/ops/checks.h"
#include "adder/ops/selective_scan.h"

namespace adder::nn {
namespace {

// softplus^-1 of step sizes drawn log-uniformly from [dt_min, dt_max], as the published code has it (the paper's text
// says uniform).
torch::Tensor initial_dt_bias(int64_t d_inner, const MambaOptions& o) {
  const torch::Tensor log_dt = torch::rand({d_inner}) * (std::log(o.dt_max) - std::log(o.dt_min)) + std::log(o.dt_min);
  const torch::Tensor dt = log_dt.exp().clamp_min(o.dt_init_floor);
  return dt + torch::log(-torch::expm1(-dt));
}

// -Re(A) (D, N) of the initialisations of table 8.
torch::Tensor initial_decay(int64_t d_inner, const MambaOptions& o) {
  if (o.A_init == "s4d-real") return torch::arange(1, o.d_state + 1, torch::kFloat).repeat({d_inner, 1});
  if (o.A_init == "s4d-lin") return torch::full({d_inner, o.d_state}, 0.5f);
  return torch::randn({d_inner, o.d_state}).exp();
}

torch::Tensor initial_frequency(int64_t d_inner, const MambaOptions& o) {
  if (o.A_init == "s4d-real") return torch::zeros({d_inner, o.d_state});
  if (o.A_init == "s4d-lin") return torch::arange(0, o.d_state, torch::kFloat).repeat({d_inner, 1});
  return torch::randn({d_inner, o.d_state});
}

torch::Tensor without_mean_square(const torch::Tensor& x, double eps) {
  const torch::Tensor wide = x.to(x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat);
  return (wide * torch::rsqrt(wide.square().mean(-1, true) + eps)).to(x.scalar_type());
}

}  // namespace

MambaState MambaState::detach() const {
  return {conv.defined() ? conv.detach() : conv, ssm.defined() ? ssm.detach() : ssm};
}

MambaState MambaState::clone() const {
  return {conv.defined() ? conv.clone() : conv, ssm.defined() ? ssm.clone() : ssm};
}

MambaImpl::MambaImpl(int64_t d_model, const MambaOptions& options, int64_t n_layer)
    : options_(options),
      d_model_(d_model),
      d_inner_(options.expand * d_model),
      rank_(options.rank(d_model)),
      values_(options.complex ? 2 * options.d_state : options.d_state) {
  ADDER_CHECK(d_model >= 1, "Mamba: d_model must be at least 1, got {}", d_model);
  ADDER_CHECK(options.dt_max >= options.dt_min, "Mamba: dt_max must not be below dt_min, got {} and {}", options.dt_max,
              options.dt_min);
  const auto part = [&](const char* name) { return register_module(name, std::make_shared<ParametersImpl>()); };
  const auto in_proj = part("in_proj");
  in_weight_ = in_proj->add("weight", uniform_fan_in({2 * d_inner_, d_model}, d_model));
  if (options.bias) in_bias_ = in_proj->add("bias", torch::zeros({2 * d_inner_}));
  const auto conv = part("conv1d");
  conv_weight_ = conv->add("weight", uniform_fan_in({d_inner_, 1, options.d_conv}, options.d_conv));
  if (options.conv_bias) conv_bias_ = conv->add("bias", uniform_fan_in({d_inner_}, options.d_conv));
  const int64_t selected = rank_ + values_ * (options.selective_B + options.selective_C);
  if (selected > 0) x_weight_ = part("x_proj")->add("weight", uniform_fan_in({selected, d_inner_}, d_inner_));
  const auto dt_proj = part("dt_proj");
  if (rank_ > 0) {
    const double scale = options.dt_scale / std::sqrt(static_cast<double>(rank_));
    const torch::Tensor weight = torch::empty({d_inner_, rank_});
    dt_weight_ =
        dt_proj->add("weight", options.dt_init == "constant" ? weight.fill_(scale) : weight.uniform_(-scale, scale));
  }
  dt_bias_ = dt_proj->add("bias", initial_dt_bias(d_inner_, options));
  A_log_ = register_parameter("A_log", initial_decay(d_inner_, options).log());
  if (options.complex) A_imag_ = register_parameter("A_imag", initial_frequency(d_inner_, options));
  // Constant B and C as in S4D: ones, and normal values of unit variance.
  if (!options.selective_B) {
    torch::Tensor ones = torch::ones({d_inner_, options.d_state});
    B_ = register_parameter("B", options.complex ? torch::stack({ones, torch::zeros_like(ones)}, -1) : ones);
  }
  if (!options.selective_C)
    C_ = register_parameter("C", options.complex ? torch::randn({d_inner_, options.d_state, 2}) * std::sqrt(0.5)
                                                 : torch::randn({d_inner_, options.d_state}));
  D_ = register_parameter("D", torch::ones({d_inner_}));
  const auto out_proj = part("out_proj");
  out_weight_ =
      out_proj->add("weight", uniform_fan_in({d_model, d_inner_}, d_inner_) / std::sqrt(static_cast<double>(n_layer)));
  if (options.bias) out_bias_ = out_proj->add("bias", torch::zeros({d_model}));
}

torch::Tensor MambaImpl::A() const {
  const auto compute = [this] {
    const torch::Tensor decay = -A_log_.exp();
    return options_.complex ? torch::complex(decay, A_imag_) : decay;
  };
  // In training it is computed each time: a recorded step would go on with what it was when it was recorded.
  const bool changes = torch::GradMode::is_enabled() || is_training();
  return changes ? compute() : frozen_A_.get({A_log_, A_imag_}, compute);
}

torch::Tensor MambaImpl::constant(const torch::Tensor& parameter) const {
  return options_.complex ? torch::view_as_complex(parameter) : parameter;
}

std::pair<torch::Tensor, MambaState> MambaImpl::forward(const torch::Tensor& x, const MambaState& state,
                                                        const SequenceInfo& sequence) {
  ADDER_CHECK(x.dim() == 3 && x.size(2) == d_model_,
              "Mamba: x must have shape (B, L, d_model) with d_model = {}, got ({})", d_model_,
              fmt::join(x.sizes().vec(), ", "));
  if (sequence.independent) {  // the first product goes by the offsets, before any operator has checked them
    ops::check_sequences("Mamba", x, sequence.mask, sequence.cu_seqlens);
    if (ops::present(sequence.cu_seqlens)) ops::check_cu_seqlens_values("Mamba", *sequence.cu_seqlens, x.size(1));
  }
  const auto optional = [](const torch::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
  const auto [inner, gate] = nn::linear_halves(x, in_weight_, in_bias_, sequence);

  ops::CausalConv1dOptions conv;
  conv.activation = "silu";
  conv.initial_window = optional(state.conv);
  conv.mask = sequence.mask;
  conv.cu_seqlens = sequence.cu_seqlens;
  conv.reverse = sequence.reverse;
  auto [u, window] = ops::causal_conv1d(inner, conv_weight_.squeeze(1), optional(conv_bias_), conv);

  torch::Tensor delta, B = B_.defined() ? constant(B_) : B_, C = C_.defined() ? constant(C_) : C_;
  if (x_weight_.defined()) {
    std::vector<int64_t> sizes;
    if (rank_ > 0) sizes.push_back(rank_);
    if (options_.selective_B) sizes.push_back(values_);
    if (options_.selective_C) sizes.push_back(values_);
    torch::Tensor projected;
    std::tie(u, projected) = nn::linear_beside(u, x_weight_, sequence);
    std::vector<torch::Tensor> parts = projected.split_with_sizes(sizes, 2);
    if (options_.inner_norm == "rms")
      for (torch::Tensor& part : parts) part = without_mean_square(part, options_.inner_norm_eps);
    size_t next = 0;
    if (rank_ > 0) delta = nn::linear(parts[next++], dt_weight_, {}, sequence);
    if (options_.selective_B) B = parts[next++].unsqueeze(2);
    if (options_.selective_C) C = parts[next++].unsqueeze(2);
  }
  if (!delta.defined()) delta = torch::zeros({1, 1, 1}, u.options()).expand_as(u);

  ops::SelectiveScanOptions scan;
  scan.D = D_;
  scan.z = gate;
  scan.delta_bias = dt_bias_;
  scan.delta_softplus = true;
  scan.discretization = options_.discretization;
  scan.initial_state = optional(state.ssm);
  scan.mask = sequence.mask;
  scan.cu_seqlens = sequence.cu_seqlens;
  scan.reverse = sequence.reverse;
  const auto [y, ssm] = ops::selective_scan(u, delta, A(), B, C, scan);
  return {nn::linear(y, out_weight_, out_bias_, sequence), {window, ssm}};
}

}  // namespace adder::nn
