#include "tests/ops/conv_arguments.h"

namespace adder::tests {
namespace {

void expect_error(const std::string& text, const std::function<void(ConvArguments&)>& spoil, const ConvCase& row = {}) {
  for (const bool gradients : {false, true}) {
    ConvArguments p = make_arguments(row);
    spoil(p);
    p.weight.requires_grad_(gradients);
    try {
      ops::causal_conv1d(p.x, p.weight, optional(p.bias), p.options);
      ADD_FAILURE() << "no error, expected: " << text;
    } catch (const c10::ValueError& error) {
      EXPECT_EQ(error.what_without_backtrace(), "causal_conv1d: " + text);
    }
  }
}

TEST(CausalConv1d, Errors) {
  const ConvCase packed{.batch = 1, .cu_seqlens = {0, 4, 17}};
  expect_error("x must have shape (B, L, D) = (*, *, *), got (2, 85)", [](ConvArguments& p) { p.x = p.x.flatten(1); });
  expect_error("x must have dtype Float, Double, BFloat16 or Half, got Int",
               [](ConvArguments& p) { p.x = p.x.to(at::kInt); });
  expect_error("weight must have dtype Float, got Double", [](ConvArguments& p) { p.x = p.x.to(at::kBFloat16); });
  expect_error("weight must have shape (D, K) = (5, *), got (4, 4)",
               [](ConvArguments& p) { p.weight = p.weight.slice(0, 0, 4); });
  expect_error("weight must have shape (D, K) with a width K of at least 1, got K = 0",
               [](ConvArguments& p) { p.weight = p.weight.slice(1, 0, 0); });
  expect_error("weight must be on the device of x (cpu), got meta",
               [](ConvArguments& p) { p.weight = p.weight.to(at::kMeta); });
  expect_error("bias must be on the device of x (cpu), got meta",
               [](ConvArguments& p) { p.bias = p.bias.to(at::kMeta); });
  expect_error("initial_window must be on the device of x (cpu), got meta",
               [](ConvArguments& p) { p.options.initial_window = p.options.initial_window->to(at::kMeta); });
  expect_error("mask must be on the device of its input (cpu), got meta",
               [](ConvArguments& p) { p.options.mask = torch::ones({2, 17}, at::kBool).to(at::kMeta); });
  expect_error(
      "cu_seqlens must be on the CPU, got meta",
      [](ConvArguments& p) { p.options.cu_seqlens = p.options.cu_seqlens->to(at::kMeta); }, packed);
  expect_error("bias must have shape (D) = (5), got (3)", [](ConvArguments& p) { p.bias = p.bias.slice(0, 0, 3); });
  expect_error("bias must have dtype Double, got Float", [](ConvArguments& p) { p.bias = p.bias.to(at::kFloat); });
  expect_error("activation must be \"none\" or \"silu\", got \"relu\"",
               [](ConvArguments& p) { p.options.activation = "relu"; });
  expect_error("initial_window must have shape (S, K - 1, D) = (2, 3, 5), got (2, 4, 5)",
               [](ConvArguments& p) { p.options.initial_window = torch::zeros({2, 4, 5}, at::kDouble); });
  expect_error("initial_window must have dtype Double, got Float",
               [](ConvArguments& p) { p.options.initial_window = torch::zeros({2, 3, 5}); });
  expect_error("mask must have shape (B, L) = (2, 17), got (2, 16)",
               [](ConvArguments& p) { p.options.mask = torch::ones({2, 16}, at::kBool); });
  expect_error("mask must have dtype Bool, got Float", [](ConvArguments& p) { p.options.mask = torch::ones({2, 17}); });
  expect_error(
      "cu_seqlens must have dtype Long, got Int",
      [](ConvArguments& p) { p.options.cu_seqlens = p.options.cu_seqlens->to(at::kInt); }, packed);
  expect_error("cu_seqlens packs sequences into one row, so B must be 1, got 2",
               [](ConvArguments& p) { p.options.cu_seqlens = torch::tensor({0, 17}, at::kLong); });
  const auto with = [](std::vector<int64_t> values) {
    return [values](ConvArguments& p) { p.options.cu_seqlens = torch::tensor(values, at::kLong); };
  };
  expect_error("cu_seqlens must start at 0, got 1", with({1, 4, 17}), packed);
  expect_error("cu_seqlens must never fall, got 9 then 4 at index 2", with({0, 9, 4}), packed);
  expect_error("cu_seqlens must end at L = 17, got 16", with({0, 4, 16}), packed);
  expect_error("initial_window must have shape (S, K - 1, D) = (3, 3, 5), got (2, 3, 5)", with({0, 4, 8, 17}), packed);
}

}  // namespace
}  // namespace adder::tests
