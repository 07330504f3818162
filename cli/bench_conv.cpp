#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "adder/kernels/machine_rates.h"
#include "adder/ops/causal_conv1d.h"
#include "cli/bench.h"

namespace adder::cli {

using torch::Tensor;

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
  const double forward = graph_ms(device, [&] {
    const torch::NoGradGuard no_grad;
    forward_pass();
  });
  const double both = graph_ms(device, [&] { torch::autograd::grad({forward_pass()}, in, {dy}); });
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
