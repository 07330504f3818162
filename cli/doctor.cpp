#include <ATen/Parallel.h>
#include <ATen/cpu/Utils.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "adder/core/check.h"
#include "adder/core/version.h"
#include "adder/device/device.h"
#include "adder/models/mamba_lm.h"
#include "adder/ops/selective_scan.h"
#include "cli/commands.h"
#include "cli/run_config.h"

namespace adder::cli {
namespace {

// The scan against its plain form, forward and backward, on a small random problem: the largest error of y and of du.
std::pair<double, double> scan_errors() {
  torch::manual_seed(0);
  const int64_t B = 2, L = 96, D = 48, N = 16;
  const auto leaf = [](torch::Tensor t) { return t.requires_grad_(); };
  const torch::Tensor u = leaf(torch::randn({B, L, D})), delta = torch::randn({B, L, D}),
                      A = -torch::rand({D, N}) - 0.1;
  const torch::Tensor b = torch::randn({B, L, 1, N}), c = torch::randn({B, L, 1, N}), weight = torch::randn({B, L, D});
  ops::SelectiveScanOptions options;
  options.delta_softplus = true;
  const auto run = [&](auto scan) {
    const torch::Tensor y = std::get<0>(scan(u, delta, A, b, c, options));
    return std::pair(y.detach(), torch::autograd::grad({(y * weight).sum()}, {u})[0]);
  };
  const auto fast = run(ops::selective_scan), plain = run(ops::selective_scan_composite);
  return {(fast.first - plain.first).abs().max().item<double>(),
          (fast.second - plain.second).abs().max().item<double>()};
}

// A tiny model must learn one sequence by heart.
std::pair<double, double> training_losses() {
  torch::manual_seed(0);
  models::MambaLMOptions options;
  options.d_model = 32;
  options.vocab_size = 16;
  models::MambaLM model(options);
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  const torch::Tensor ids = torch::randint(16, {1, 33}, torch::kLong);
  double first = 0, last = 0;
  for (int i = 0; i < 40; ++i) {
    optimizer.zero_grad();
    const torch::Tensor loss = model->loss(ids.slice(1, 0, 32), ids.slice(1, 1, 33)).mean;
    loss.backward();
    optimizer.step();
    last = loss.item<double>();
    if (i == 0) first = last;
  }
  return {first, last};
}

std::string processor_features() {
  std::vector<std::string> names;
  for (const auto& [name, value] : at::cpu::get_cpu_capabilities())
    if (value.isBool() && value.toBool()) names.push_back(name);
  std::sort(names.begin(), names.end());
  return fmt::format("{}", fmt::join(names, " "));
}

void run() {
  fmt::print("Adder      {}\n", core::kVersion);
  fmt::print("LibTorch   {}\n", TORCH_VERSION);
  fmt::print("compiler   {} (C++{})\n", __VERSION__, __cplusplus / 100 % 100);
  fmt::print("processor  {} threads of {}; {}\n", at::get_num_threads(), std::thread::hardware_concurrency(),
             processor_features());
  fmt::print("devices    cpu\n");
  if (!device::built_with_cuda()) fmt::print("           (this build has no CUDA kernels)\n");
  for (int i = 0; i < device::cuda_device_count(); ++i) {
    const at::Device gpu(at::kCUDA, static_cast<c10::DeviceIndex>(i));
    fmt::print("           cuda:{} {}, {} of {} free\n", i, device::name(gpu), bytes_text(device::memory(gpu).free),
               bytes_text(device::memory(gpu).total));
  }
  const auto begin = std::chrono::steady_clock::now();
  const auto [forward, backward] = scan_errors();
  const auto [first, last] = training_losses();
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print("self-test  selective scan against its plain form: error {:.1e} forward, {:.1e} backward\n", forward,
             backward);
  fmt::print("           training one sequence by heart: loss {:.2f} to {:.2f}\n", first, last);
  fmt::print("           {:.1f} s\n", seconds);
  ADDER_CHECK(forward < 1e-4 && backward < 1e-3 && last < 0.2 * first,
              "self-test failed: the figures above are too large");
  fmt::print("all well\n");
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  app.add_subcommand("doctor", "Print versions and processor features and run a short self-test")->callback(run);
}

}  // namespace adder::cli
