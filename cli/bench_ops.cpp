#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "adder/kernels/machine_rates.h"
#include "adder/ops/causal_conv1d.h"
#include "adder/ops/selective_scan.h"
#include "cli/bench.h"

namespace adder::cli {
namespace {

using torch::Tensor;

// float32 rounds to 6e-8 and errors add up along a sequence; bfloat16 to 4e-3.
double allowed_error(const BenchOptions& o) {
  return o.type() == torch::kFloat ? 2e-5 : 8e-3;
}

std::vector<Tensor> with_gradients(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors) t = t.detach().requires_grad_();
  return tensors;
}

// u, delta, z, A, B, C, D, delta_bias
std::tuple<Tensor, Tensor> scan(const std::vector<Tensor>& in, bool composite) {
  ops::SelectiveScanOptions options;
  options.z = in[2];
  options.D = in[6];
  options.delta_bias = in[7];
  options.delta_softplus = true;
  return composite ? ops::selective_scan_composite(in[0], in[1], in[3], in[4], in[5], options)
                   : ops::selective_scan(in[0], in[1], in[3], in[4], in[5], options);
}

// Outputs and gradients of one row, some channels and a first part of the length, in the type and in double.
double scan_error(const std::vector<Tensor>& all, torch::ScalarType type) {
  const int64_t L = std::min<int64_t>(all[0].size(1), 1024), D = std::min<int64_t>(all[0].size(2), 32);
  const auto part = [&](const Tensor& t) { return t.slice(0, 0, 1).slice(1, 0, L); };
  std::vector<Tensor> cut = {part(all[0]).slice(2, 0, D),
                             part(all[1]).slice(2, 0, D),
                             part(all[2]).slice(2, 0, D),
                             all[3].slice(0, 0, D),
                             part(all[4]),
                             part(all[5]),
                             all[6].slice(0, 0, D),
                             all[7].slice(0, 0, D)};
  std::vector<Tensor> wide;
  for (const Tensor& t : cut) wide.push_back(t.to(torch::kDouble));
  cut = with_gradients(cut);
  wide = with_gradients(wide);
  const Tensor y = std::get<0>(scan(cut, false)), expected = std::get<0>(scan(wide, true));
  const Tensor dy = torch::randn(y.sizes(), y.options()).to(type);
  const auto grads = torch::autograd::grad({y}, cut, {dy});
  const auto expected_grads = torch::autograd::grad({expected}, wide, {dy.to(torch::kDouble)});
  double error = relative_error(y.detach(), expected.detach());
  for (size_t i = 0; i < grads.size(); ++i) error = std::max(error, relative_error(grads[i], expected_grads[i]));
  return error;
}

}  // namespace

nlohmann::ordered_json bench_scan(const BenchOptions& o) {
  torch::manual_seed(0);
  const auto type = o.type();
  const int64_t B = o.batch, L = o.length, D = o.channels, N = o.state;
  const torch::Device device = o.where();
  const auto options = torch::device(device).dtype(torch::kFloat);
  const auto random = [&](at::IntArrayRef sizes) { return torch::randn(sizes, options).to(type); };
  const std::vector<Tensor> in = with_gradients(
      {random({B, L, D}), random({B, L, D}), random({B, L, D}), -torch::arange(1, N + 1, options).repeat({D, 1}),
       random({B, L, 1, N}), random({B, L, 1, N}), torch::randn({D}, options), torch::randn({D}, options) - 4});
  const double error = scan_error(in, type);
  check_error("scan", error, allowed_error(o));
  const Tensor dy = random({B, L, D});
  const double forward = median_ms(device, [&] {
    const torch::NoGradGuard no_grad;
    scan(in, false);
  });
  const double both = median_ms(device, [&] { torch::autograd::grad({std::get<0>(scan(in, false))}, in, {dy}); });
  // The backward pass alone, on one graph that is kept.
  const Tensor y = std::get<0>(scan(in, false));
  const double backward = median_ms(device, [&] { torch::autograd::grad({y}, in, {dy}, /*retain_graph=*/true); });
  const double exponentials = static_cast<double>(B) * static_cast<double>(L * D * N);
  const double bytes =
      static_cast<double>(B * L) * static_cast<double>(4 * D + 2 * N) * static_cast<double>(in[0].element_size());
  nlohmann::ordered_json line = {{"batch", B},
                                 {"length", L},
                                 {"channels", D},
                                 {"state", N},
                                 {"forward_ms", forward},
                                 {"backward_ms", backward},
                                 {"forward_backward_ms", both},
                                 {"error", error}};
  if (!device.is_cpu()) return line;
  const double exp_rate = kernels::cpu::exponentials_per_second(at::get_num_threads());
  const double read_rate = kernels::cpu::read_bytes_per_second(at::get_num_threads());
  line.update({{"machine_exp_per_s", exp_rate},
               {"machine_read_bytes_per_s", read_rate},
               {"forward_exp_share", exponentials / (forward * 1e-3) / exp_rate},
               {"backward_exp_share", exponentials / (backward * 1e-3) / exp_rate},
               {"forward_memory_share", bytes / (forward * 1e-3) / read_rate}});
  return line;
}

nlohmann::ordered_json bench_conv(const BenchOptions& o) {
  torch::manual_seed(0);
  const auto type = o.type();
  const int64_t B = o.batch, L = o.length, D = o.channels, K = o.width;
  const torch::Device device = o.where();
  const auto options = torch::device(device).dtype(torch::kFloat);
  const std::vector<Tensor> in = with_gradients(
      {torch::randn({B, L, D}, options).to(type), torch::randn({D, K}, options), torch::randn({D}, options)});
  ops::CausalConv1dOptions silu;
  silu.activation = "silu";
  std::vector<Tensor> cut = {in[0].slice(0, 0, 1).slice(1, 0, 4096).slice(2, 0, 64), in[1].slice(0, 0, 64),
                             in[2].slice(0, 0, 64)},
                      wide;
  for (const Tensor& t : cut) wide.push_back(t.to(torch::kDouble));
  cut = with_gradients(cut);
  wide = with_gradients(wide);
  const Tensor y = std::get<0>(ops::causal_conv1d(cut[0], cut[1], cut[2], silu));
  const Tensor expected = std::get<0>(ops::causal_conv1d_composite(wide[0], wide[1], wide[2], silu));
  const Tensor dy_part = torch::randn(y.sizes(), y.options()).to(type);
  const auto grads = torch::autograd::grad({y}, cut, {dy_part});
  const auto expected_grads = torch::autograd::grad({expected}, wide, {dy_part.to(torch::kDouble)});
  double error = relative_error(y.detach(), expected.detach());
  for (size_t i = 0; i < grads.size(); ++i) error = std::max(error, relative_error(grads[i], expected_grads[i]));
  check_error("conv", error, allowed_error(o));

  const Tensor dy = torch::randn({B, L, D}, options).to(type);
  const auto forward_pass = [&] { return std::get<0>(ops::causal_conv1d(in[0], in[1], in[2], silu)); };
  const double forward = median_ms(device, [&] {
    const torch::NoGradGuard no_grad;
    forward_pass();
  });
  const double both = median_ms(device, [&] { torch::autograd::grad({forward_pass()}, in, {dy}); });
  const Tensor whole = forward_pass();
  const double backward = median_ms(device, [&] { torch::autograd::grad({whole}, in, {dy}, /*retain_graph=*/true); });
  const double bytes =
      2.0 * static_cast<double>(B * L) * static_cast<double>(D) * static_cast<double>(in[0].element_size());
  nlohmann::ordered_json line = {{"batch", B},
                                 {"length", L},
                                 {"channels", D},
                                 {"width", K},
                                 {"forward_ms", forward},
                                 {"backward_ms", backward},
                                 {"forward_backward_ms", both},
                                 {"error", error}};
  if (!device.is_cpu()) return line;
  const double read_rate = kernels::cpu::read_bytes_per_second(at::get_num_threads());
  line.update(
      {{"machine_read_bytes_per_s", read_rate}, {"forward_memory_share", bytes / (forward * 1e-3) / read_rate}});
  return line;
}

}  // namespace adder::cli
