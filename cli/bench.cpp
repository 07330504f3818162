#include "cli/bench.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>

#include "adder/core/check.h"
#include "cli/arguments.h"
#include "cli/commands.h"

namespace adder::cli {

double median_ms(torch::Device device, const std::function<void()>& body) {
  device::Stopwatch watch(device);
  const auto once = [&] {
    watch.start();
    body();
    watch.stop();
    return watch.milliseconds();
  };
  const double first = std::min({once(), once(), once()});
  const double milliseconds = device.is_cpu() ? 2000 : 200;
  const int64_t runs = std::clamp<int64_t>(static_cast<int64_t>(milliseconds / std::max(first, 1e-3)), 5, 1000);
  std::vector<double> times;
  for (int64_t i = 0; i < runs; ++i) times.push_back(once());
  std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
  return times[runs / 2];
}

double graph_ms(torch::Device device, const std::function<void()>& body) {
  if (device.is_cpu()) return median_ms(device, body);
  device::Stopwatch watch(device);
  body();
  watch.start();
  body();
  watch.stop();
  constexpr double kLongEnough = 0.3;  // of one measurement
  const auto calls = static_cast<int64_t>(std::clamp(kLongEnough / std::max(watch.milliseconds(), 1e-3), 1.0, 32.0));
  device::Graph graph(device);
  graph.record(body, [&] {
    for (int64_t i = 0; i < calls; ++i) body();
  });
  return median_ms(device, [&graph] { graph.replay(); }) / static_cast<double>(calls);
}

double relative_error(const torch::Tensor& got, const torch::Tensor& expected) {
  const torch::Tensor wide = expected.to(torch::kDouble);
  return ((got.to(wide.device(), torch::kDouble) - wide).abs().max() / wide.abs().max().clamp_min(1e-30))
      .item<double>();
}

void check_error(const char* name, double error, double allowed) {
  ADDER_CHECK(error <= allowed,
              "bench {}: the error to the double reference is {:.2e}, allowed is {:.2e}; nothing was timed", name,
              error, allowed);
}

void add_bench_command(CLI::App& app) {
  auto* command =
      app.add_subcommand("bench", "Measure speed and memory; results are checked against the double reference first");
  command->require_subcommand(1);
  auto options = std::make_shared<BenchOptions>();
  struct Case {
    const char* name;
    const char* help;
    nlohmann::ordered_json (*run)(const BenchOptions&);
    std::vector<std::pair<const char*, int64_t*>> flags;
    std::function<void(CLI::App&)> more = [](CLI::App&) {};
  };
  BenchOptions& o = *options;
  const auto delta_bias = [&o](CLI::App& sub) {
    sub.add_option("--delta-bias", o.delta_bias,
                   "mean of delta's bias: -4 for steps near 0.02 and states that last, 0 for steps near 0.8")
        ->capture_default_str();
  };
  const auto grid_options = [&o, delta_bias](CLI::App& sub) {
    delta_bias(sub);
    sub.add_option("--picture", o.picture, "a PNG of the shares of the limit");
  };
  const auto train_options = [&o](CLI::App& sub) {
    sub.add_option("--recompute", o.recompute, "what the backward pass computes again")
        ->check(CLI::IsMember({"none", "mixer", "block"}))
        ->capture_default_str();
    add_whole_number(sub, "--segment", o.segment, "steps of a row in memory at once; 0: all", 0);
  };
  const std::vector<Case> cases = {
      {"scan",
       "the selective scan with gate, skip, bias and softplus",
       bench_scan,
       {{"--batch", &o.batch}, {"--length", &o.length}, {"--channels", &o.channels}, {"--state", &o.state}},
       delta_bias},
      {"grid",
       "the scan over many shapes on a GPU, each against its limit",
       bench_grid,
       {{"--state", &o.state}},
       grid_options},
      {"conv",
       "the causal convolution with SiLU",
       bench_conv,
       {{"--batch", &o.batch}, {"--length", &o.length}, {"--channels", &o.channels}, {"--width", &o.width}}},
      {"train",
       "training steps: forward, backward, AdamW",
       bench_train,
       {{"--d-model", &o.d_model},
        {"--n-layer", &o.n_layer},
        {"--vocab", &o.vocab},
        {"--batch", &o.batch},
        {"--length", &o.length}},
       train_options},
      {"decode",
       "a prompt in one pass, then tokens one at a time; random weights",
       bench_decode,
       {{"--d-model", &o.d_model},
        {"--n-layer", &o.n_layer},
        {"--vocab", &o.vocab},
        {"--batch", &o.batch},
        {"--prompt", &o.prompt},
        {"--tokens", &o.tokens}}},
  };
  for (const Case& one : cases) {
    auto* sub = command->add_subcommand(one.name, one.help);
    for (const auto& [flag, value] : one.flags) add_whole_number(*sub, flag, *value, "", 1);
    sub->add_option("--dtype", o.dtype)->check(CLI::IsMember({"float32", "bfloat16"}))->capture_default_str();
    one.more(*sub);
    add_device(*sub, o.device);
    add_threads(*sub, o.threads);
    sub->add_flag("--json", o.json, "one JSON line");
    sub->callback([options, name = std::string(one.name), run = one.run] {
      if (options->threads > 0) at::set_num_threads(static_cast<int>(options->threads));
      nlohmann::ordered_json line = {{"case", name}, {"dtype", options->dtype}, {"device", options->device}};
      if (options->where().is_cuda())
        line["gpu"] = device::name(options->where());
      else
        line["threads"] = at::get_num_threads();
      line.update(run(*options));
      if (options->json) {
        fmt::print("{}\n", line.dump());
        return;
      }
      for (const auto& [key, value] : line.items())
        fmt::print("{:28} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
    });
  }
}

}  // namespace adder::cli
