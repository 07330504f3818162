#pragma once

#include <torch/torch.h>

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
  double delta_bias = -4;
  std::string recompute = "none", picture;

  torch::Device where() const { return device::parse(device); }
  torch::ScalarType type() const { return dtype == "bfloat16" ? torch::kBFloat16 : torch::kFloat; }
};

// The median of the times of `body` in milliseconds by the device's clock, after a warm-up; as many runs as fit into
// about two seconds (0.2 on a GPU), five at least.
double median_ms(torch::Device device, const std::function<void()>& body);

// The same of work that is recorded as a CUDA graph, several times where it is short; on the CPU median_ms(). The
// host's part of a call is not in it.
double graph_ms(torch::Device device, const std::function<void()>& body);

// float32 rounds to 6e-8 and errors add up along a sequence; bfloat16 to 4e-3.
inline double allowed_error(const BenchOptions& o) {
  return o.type() == torch::kFloat ? 2e-5 : 8e-3;
}

// As leaves that get gradients.
inline std::vector<torch::Tensor> with_gradients(std::vector<torch::Tensor> tensors) {
  for (torch::Tensor& t : tensors) t = t.detach().requires_grad_();
  return tensors;
}

// The largest difference as a share of the largest expected magnitude.
double relative_error(const torch::Tensor& got, const torch::Tensor& expected);

// Throws where a result is further from the double reference than is allowed.
void check_error(const char* name, double error, double allowed);

// Each checks its result against the double reference first, and throws where it is wrong; then measures. One JSON
// object.
nlohmann::ordered_json bench_scan(const BenchOptions& options);
// The scan over a grid of shapes on a GPU, each against its limit; the rows are in "shapes".
nlohmann::ordered_json bench_grid(const BenchOptions& options);
nlohmann::ordered_json bench_conv(const BenchOptions& options);
nlohmann::ordered_json bench_train(const BenchOptions& options);
nlohmann::ordered_json bench_decode(const BenchOptions& options);

}  // namespace adder::cli
