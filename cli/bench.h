#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "adder/device/device.h"

namespace adder::cli {

struct BenchOptions {
  std::string dtype = "float32", device = "cpu";
  int64_t threads = 0;
  bool json = false;
  int64_t batch = 1, length = 2048, channels = 2048, state = 16, width = 4;
  int64_t d_model = 768, n_layer = 24, vocab = 50280, prompt = 512, tokens = 64, segment = 0;
  std::string recompute = "none";

  torch::Device where() const { return device::parse(device); }
  torch::ScalarType type() const { return dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat; }
};

// The median of the times of `body` in milliseconds by the device's clock, after a warm-up; as many runs as fit into
// about two seconds, five at least.
double median_ms(torch::Device device, const std::function<void()>& body);

// The largest difference as a share of the largest expected magnitude.
double relative_error(const torch::Tensor& got, const torch::Tensor& expected);

// Throws where a result is further from the double reference than is allowed.
void check_error(const char* name, double error, double allowed);

// Each checks its result against the double reference first, and throws where it is wrong; then measures. One JSON
// object.
nlohmann::ordered_json bench_scan(const BenchOptions& options);
nlohmann::ordered_json bench_conv(const BenchOptions& options);
nlohmann::ordered_json bench_train(const BenchOptions& options);
nlohmann::ordered_json bench_decode(const BenchOptions& options);

}  // namespace adder::cli
