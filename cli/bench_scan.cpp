#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <map>

#include "adder/core/check.h"
#include "adder/kernels/machine_rates.h"
#include "adder/ops/selective_scan.h"
#include "cli/bench.h"
#include "cli/chart.h"

namespace adder::cli {
namespace {

using torch::Tensor;

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
double scan_error(const std::vector<Tensor>& all, torch::ScalarType type, int64_t steps = 1024) {
  const int64_t L = std::min<int64_t>(all[0].size(1), steps), D = std::min<int64_t>(all[0].size(2), 32);
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

// With gradients: u, delta, z normal, A = -1 .. -N.
std::vector<Tensor> scan_inputs(int64_t B, int64_t L, int64_t D, int64_t N, double delta_bias, torch::ScalarType type,
                                torch::Device device) {
  const auto options = torch::device(device).dtype(torch::kFloat);
  const auto random = [&](at::IntArrayRef sizes) { return torch::randn(sizes, options.dtype(type)); };
  return with_gradients({random({B, L, D}), random({B, L, D}), random({B, L, D}),
                         -torch::arange(1, N + 1, options).repeat({D, 1}), random({B, L, 1, N}), random({B, L, 1, N}),
                         torch::randn({D}, options), torch::randn({D}, options) + delta_bias});
}

struct ScanTimes {
  double forward, both;  // milliseconds
};
ScanTimes time_scan(const std::vector<Tensor>& in, torch::Device device) {
  const Tensor dy = torch::randn_like(in[0]);
  return {graph_ms(device,
                   [&] {
                     const torch::NoGradGuard no_grad;
                     scan(in, false);
                   }),
          graph_ms(device, [&] { torch::autograd::grad({std::get<0>(scan(in, false))}, in, {dy}); })};
}

// What a GPU reaches at most, and with it the least time of a scan: that of its bytes (u, delta, z, B, C in, y out), or
// of an exponential for each state of an element and four for softplus and gate. Both passes: 3.1 times as much.
struct Limits {
  double copy_rate, exponentials;  // bytes, exponentials a second

  explicit Limits(torch::Device device) : exponentials(device::exponentials_per_second(device)) {
    const Tensor from = torch::ones({int64_t{1} << 28}, torch::TensorOptions(device)), to = torch::empty_like(from);
    copy_rate = 2 * static_cast<double>(from.nbytes()) / (1e-3 * median_ms(device, [&] { to.copy_(from); }));
  }
  double forward_ms(int64_t B, int64_t L, int64_t D, int64_t N, int64_t element_size) const {
    const double steps = static_cast<double>(B * L);
    const double bytes = steps * static_cast<double>((4 * D + 2 * N) * element_size);
    return 1e3 * std::max(bytes / copy_rate, steps * static_cast<double>(D * (N + 4)) / exponentials);
  }
};
constexpr double kBothPasses = 3.1;

}  // namespace

nlohmann::ordered_json bench_scan(const BenchOptions& o) {
  torch::manual_seed(0);
  const auto type = o.type();
  const int64_t B = o.batch, L = o.length, D = o.channels, N = o.state;
  const torch::Device device = o.where();
  const std::vector<Tensor> in = scan_inputs(B, L, D, N, o.delta_bias, type, device);
  const double error = scan_error(in, type);
  check_error("scan", error, allowed_error(o));
  const ScanTimes times = time_scan(in, device);
  const double forward = times.forward, both = times.both;
  // The backward pass alone, on one graph that is kept.
  const Tensor y = std::get<0>(scan(in, false)), dy = torch::randn_like(y);
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
  if (!device.is_cpu()) {
    const double limit = Limits(device).forward_ms(B, L, D, N, in[0].element_size());
    line.update({{"forward_limit_ms", limit},
                 {"forward_share", limit / forward},
                 {"forward_backward_share", kBothPasses * limit / both}});
    return line;
  }
  const double exp_rate = kernels::cpu::exponentials_per_second(at::get_num_threads());
  const double read_rate = kernels::cpu::read_bytes_per_second(at::get_num_threads());
  line.update({{"machine_exp_per_s", exp_rate},
               {"machine_read_bytes_per_s", read_rate},
               {"forward_exp_share", exponentials / (forward * 1e-3) / exp_rate},
               {"backward_exp_share", exponentials / (backward * 1e-3) / exp_rate},
               {"forward_memory_share", bytes / (forward * 1e-3) / read_rate}});
  return line;
}

nlohmann::ordered_json bench_grid(const BenchOptions& o) {
  const torch::Device device = o.where();
  ADDER_CHECK(device.is_cuda(), "bench grid: measures a GPU, give --device cuda");
  const Limits limits(device);
  const auto type = o.type();
  const int64_t N = o.state, size = torch::elementSize(type);
  nlohmann::ordered_json shapes = nlohmann::ordered_json::array();
  int64_t slow = 0;
  std::map<std::string, Series> curves;
  for (const int64_t B : {1, 4, 16, 64, 256})
    for (const int64_t D : {64, 256, 1024, 2048, 8192})
      for (const int64_t L : {1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 524288}) {
        // In and out in both directions, two more for what is copied on the way, and the saved states.
        const double bytes = static_cast<double>(B * L * D) * static_cast<double>(10 * size + N / 4);
        if (bytes > 0.7 * static_cast<double>(device::memory(device).total) || bytes > 100e9) continue;
        torch::manual_seed(0);
        const std::vector<Tensor> in = scan_inputs(B, L, D, N, o.delta_bias, type, device);
        const double error = scan_error(in, type, 16);
        check_error("grid", error, allowed_error(o));
        const ScanTimes times = time_scan(in, device);
        const double limit = limits.forward_ms(B, L, D, N, size);
        // The same exponentials twice where a sequence is cut, because it alone would not fill the device.
        const bool cut = B * D < 8192 && L >= 512;
        const double work = cut ? 2 * limit : limit;
        const bool forward_well = times.forward <= work / 0.3 + 0.015;
        const bool both_well = times.both <= kBothPasses * work / 0.2 + 0.040;
        slow += !(forward_well && both_well);
        shapes.push_back({{"batch", B},
                          {"length", L},
                          {"channels", D},
                          {"cut", cut},
                          {"forward_ms", times.forward},
                          {"forward_backward_ms", times.both},
                          {"forward_limit_ms", limit},
                          {"forward_share", limit / times.forward},
                          {"forward_backward_share", kBothPasses * limit / times.both},
                          {"within", forward_well && both_well},
                          {"error", error}});
        if (B != 4 && B != 64 && D != 256 && D != 8192) {
          const std::string curve = "B" + std::to_string(B) + " D" + std::to_string(D);
          curves[curve].name = curve;
          curves[curve].x.push_back(static_cast<double>(L));
          curves[curve].y.push_back(limit / times.forward);
        }
      }
  if (!o.picture.empty()) {
    std::vector<Series> series;
    for (const auto& [name, curve] : curves) series.push_back(curve);
    draw_chart(o.picture, series,
               {.title = "Selective scan, forward, " + o.dtype + ", " + device::name(device),
                .x_label = "length",
                .y_label = "share of the hardware limit",
                .log_x = true,
                .y_min = 0.0});
  }
  return {{"state", N},
          {"copy_bytes_per_s", limits.copy_rate},
          {"exponentials_per_s", limits.exponentials},
          {"slower_than_allowed", slow},
          {"shapes", shapes}};
}

}  // namespace adder::cli
