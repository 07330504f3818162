// Sizes at which 32-bit places and grids of blocks come to their ends, on a GPU. Chosen channels, the last ones among
// them, are compared with the same work in double on the CPU.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/device/device.h"
#include "adder/ops/add_norm.h"
#include "adder/ops/causal_conv1d.h"
#include "adder/ops/selective_scan.h"
#include "tests/device.h"
#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using torch::Tensor;

struct Shape {
  std::string name;
  int64_t batch, length, channels;
  torch::ScalarType type = torch::kBFloat16;
};

class LargeShapes : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    ADDER_NEEDS_CUDA();
    const Shape& s = GetParam();
    const double bytes = static_cast<double>(s.batch * s.length * s.channels) * 26;
    const device::Memory memory = device::memory(torch::Device(torch::kCUDA, 0));
    if (bytes < 0.9 * static_cast<double>(memory.total)) return;
    ASSERT_FALSE(cuda_is_required()) << "ADDER_REQUIRE_CUDA=1, but this needs " << bytes * 1e-9 << " GB of GPU memory";
    GTEST_SKIP() << "needs " << bytes * 1e-9 << " GB of GPU memory";
  }
  static torch::TensorOptions options() { return torch::device(torch::kCUDA).dtype(GetParam().type); }
  static Tensor random(at::IntArrayRef sizes) { return torch::randn(sizes, options()); }
  static double tolerance() { return GetParam().type == torch::kFloat ? 2e-4 : 2e-2; }

  // The first two channels and the last two.
  static Tensor chosen(const Tensor& t, int64_t dim) {
    const int64_t last = t.size(dim) - 2;
    return torch::cat({t.slice(dim, 0, 2), t.slice(dim, last)}, dim).to(torch::kCPU, torch::kDouble);
  }
  static Tensor leaf(const Tensor& t) { return t.detach().requires_grad_(); }
  static void compare(const std::string& name, const Tensor& got, const Tensor& expected) {
    const double largest = std::max(1e-6, expected.abs().max().item<double>());
    EXPECT_LT((got - expected).abs().max().item<double>() / largest, tolerance()) << name;
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, LargeShapes,
                         testing::Values(Shape{"elements_beyond_2_31", 2, (1 << 20) + 3, 1056},
                                         Shape{"channels_beyond_65535", 2, 65, 65600},
                                         Shape{"batch_beyond_65535", 65600, 5, 32},
                                         Shape{"length_2_20", 1, 1 << 20, 48, torch::kFloat}),
                         [](const auto& test) { return test.param.name; });

TEST_P(LargeShapes, Scan) {
  const Shape& s = GetParam();
  torch::manual_seed(1);
  std::vector<Tensor> in = {random({s.batch, s.length, s.channels}),  // u, delta, z
                            random({s.batch, s.length, s.channels}), random({s.batch, s.length, s.channels})};
  const auto wide = options().dtype(torch::kFloat);
  in.push_back(-torch::rand({s.channels, 16}, wide) - 0.5);     // A
  in.push_back(torch::randn({s.channels}, wide));               // D
  in.push_back(torch::randn({s.channels}, wide) - 4);           // delta_bias
  in.push_back(torch::randn({s.batch, s.channels, 16}, wide));  // initial state
  const Tensor B = random({s.batch, s.length, 1, 16}), C = random({s.batch, s.length, 1, 16});
  const auto run = [](std::vector<Tensor>& t, const Tensor& b, const Tensor& c) {
    for (Tensor& one : t) one = leaf(one);
    ops::SelectiveScanOptions o;
    o.z = t[2], o.D = t[4], o.delta_bias = t[5], o.delta_softplus = true, o.initial_state = t[6];
    return ops::selective_scan(t[0], t[1], t[3], b, c, o);
  };
  std::vector<Tensor> few;
  const int64_t dims[] = {2, 2, 2, 0, 0, 0, 1};
  for (size_t i = 0; i < in.size(); ++i) few.push_back(chosen(in[i], dims[i]));
  const auto [expected, expected_state] =
      run(few, B.to(torch::kCPU, torch::kDouble), C.to(torch::kCPU, torch::kDouble));
  const auto [y, state] = run(in, B, C);
  compare("y", chosen(y, 2), expected);
  compare("state", chosen(state, 1), expected_state);
  const Tensor dy = random(y.sizes()), dstate = torch::randn(state.sizes(), wide);
  const auto expected_grads =
      torch::autograd::grad({expected, expected_state}, few, {chosen(dy, 2), chosen(dstate, 1)});
  const auto grads = torch::autograd::grad({y, state}, in, {dy, dstate});
  const char* names[] = {"du", "ddelta", "dz", "dA", "dD", "ddelta_bias", "dinitial_state"};
  for (size_t i = 0; i < grads.size(); ++i) compare(names[i], chosen(grads[i], dims[i]), expected_grads[i]);
}

TEST_P(LargeShapes, Convolution) {
  const Shape& s = GetParam();
  torch::manual_seed(2);
  const auto wide = options().dtype(torch::kFloat);
  std::vector<Tensor> in = {random({s.batch, s.length, s.channels}), torch::randn({s.channels, 4}, wide),
                            torch::randn({s.channels}, wide), torch::randn({s.batch, 3, s.channels}, wide)};
  const auto run = [](std::vector<Tensor>& t) {
    for (Tensor& one : t) one = leaf(one);
    ops::CausalConv1dOptions o;
    o.activation = "silu";
    o.initial_window = t[3];
    return ops::causal_conv1d(t[0], t[1], t[2], o);
  };
  const int64_t dims[] = {2, 0, 0, 2};
  std::vector<Tensor> few;
  for (size_t i = 0; i < in.size(); ++i) few.push_back(chosen(in[i], dims[i]));
  const auto [expected, expected_window] = run(few);
  const auto [y, window] = run(in);
  compare("y", chosen(y, 2), expected);
  compare("window", chosen(window, 2), expected_window);
  const Tensor dy = random(y.sizes());
  const auto expected_grads = torch::autograd::grad({expected}, few, {chosen(dy, 2)});
  const auto grads = torch::autograd::grad({y}, in, {dy});
  const char* names[] = {"dx", "dweight", "dbias", "dinitial_window"};
  for (size_t i = 0; i < grads.size(); ++i) compare(names[i], chosen(grads[i], dims[i]), expected_grads[i]);
}

// Rows are as many as there are steps; the first and the last of them.
TEST_P(LargeShapes, AddNorm) {
  const Shape& s = GetParam();
  torch::manual_seed(3);
  Tensor x = leaf(random({s.batch * s.length, s.channels}));
  Tensor weight = leaf(torch::rand({s.channels}, options().dtype(torch::kFloat)) + 0.5);
  const Tensor y = std::get<0>(ops::add_norm(x, {}, weight, {}));
  const Tensor dy = random(y.sizes());
  const auto grads = torch::autograd::grad({y}, {x, weight}, {dy});
  const auto ends = [](const Tensor& t) { return chosen(t, 0); };
  Tensor few = leaf(ends(x)), wide_weight = leaf(weight.to(torch::kCPU, torch::kDouble));
  const Tensor expected = std::get<0>(ops::add_norm(few, {}, wide_weight, {}));
  compare("y", ends(y), expected);
  compare("dx", ends(grads[0]), torch::autograd::grad({expected}, {few}, {ends(dy)})[0]);
  // Each row's share of dweight is dy x / rms(x).
  const Tensor rms = x.detach().to(torch::kFloat).square().mean(1, true).add(1e-5).rsqrt();
  Tensor sum = torch::zeros({s.channels}, options().dtype(torch::kDouble));
  for (int64_t row = 0; row < x.size(0); row += 1 << 16) {
    const auto part = [&](const Tensor& t) { return t.detach().slice(0, row, row + (1 << 16)).to(torch::kDouble); };
    sum += (part(dy) * part(x) * part(rms)).sum(0);
  }
  compare("dweight", grads[1].to(torch::kDouble), sum);
}

}  // namespace
}  // namespace adder::tests
