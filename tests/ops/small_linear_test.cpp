#include "adder/ops/small_linear.h"

#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

struct Outcome {
  at::Tensor y;
  std::vector<at::Tensor> gradients;

  using Function = std::function<at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&)>;
  Outcome(const Function& function, std::vector<int64_t> shape, int64_t out, bool with_bias, at::ScalarType x_dtype,
          at::ScalarType weight_dtype) {
    torch::manual_seed(1);
    const auto values = [](at::IntArrayRef sizes) { return at::randn(sizes).to(at::kBFloat16).to(at::kHalf); };
    const at::Tensor x = leaf(values(shape), x_dtype), weight = leaf(values({out, shape.back()}), weight_dtype);
    const at::Tensor bias = leaf(values({out}), x_dtype == at::kDouble ? at::kDouble : at::kFloat);
    y = function(x, weight, with_bias ? std::optional(bias) : std::nullopt);
    (y * values(y.sizes()).to(y.scalar_type())).sum().backward();
    gradients = {x.grad(), weight.grad(), bias.grad()};
  }
};

void compare(const std::vector<int64_t>& shape, int64_t out, bool bias, at::ScalarType dtype, Tolerance forward,
             Tolerance backward) {
  SCOPED_TRACE(testing::Message() << at::IntArrayRef(shape) << " out " << out);
  const Outcome got(here::small_linear, shape, out, bias, dtype, dtype);
  const Outcome expected(ops::small_linear_composite, shape, out, bias, at::kDouble, at::kDouble);
  expect_near("y", got.y, expected.y, forward);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(got.gradients[i].defined(), expected.gradients[i].defined());
    if (got.gradients[i].defined()) expect_near("gradient", got.gradients[i], expected.gradients[i], backward);
  }
}

TEST(SmallLinear, AgreesWithTheComposite) {
  for_each_device([&] {
    for (const bool bias : {false, true})
      for (const std::vector<int64_t>& shape :
           {std::vector<int64_t>{33}, {1, 33}, {8, 33}, {9, 33}, {3, 7, 33}, {0, 33}, {2, 0, 5}, {4, 1}}) {
        compare(shape, 19, bias, at::kFloat, kFloat32Forward, kFloat32Backward);
        compare(shape, 19, bias, at::kDouble, kFloat64Forward, kFloat64Backward);
      }
    compare({5, 33}, 1, true, at::kFloat, kFloat32Forward, kFloat32Backward);
  });
}

TEST(SmallLinear, NarrowTypesErrAtMostTwiceAsMuchAsTorch) {
  for_each_device([&] {
    const Outcome truth(ops::small_linear_composite, {6, 200}, 50, true, at::kDouble, at::kDouble);
    for (const auto& [x, weight] : {std::pair(at::kBFloat16, at::kBFloat16),
                                    {at::kHalf, at::kHalf},
                                    {at::kFloat, at::kBFloat16},
                                    {at::kFloat, at::kHalf}}) {
      const Outcome got(here::small_linear, {6, 200}, 50, true, x, weight);
      const Outcome composite(ops::small_linear_composite, {6, 200}, 50, true, x, weight);
      EXPECT_EQ(got.y.scalar_type(), x);
      EXPECT_LE(error_of(got.y, truth.y), 2 * error_of(composite.y, truth.y));
      for (int i = 0; i < 3; ++i) {
        EXPECT_EQ(got.gradients[i].scalar_type(), composite.gradients[i].scalar_type());
        EXPECT_LE(error_of(got.gradients[i], truth.gradients[i]),
                  2 * error_of(composite.gradients[i], truth.gradients[i]) + 1e-5)
            << i << " " << x << " " << weight;
      }
    }
  });
}

TEST(SmallLinear, ARowDoesNotDependOnItsBatch) {
  for_each_device([&] {
    const at::Tensor x = at::randn({19, 70}), weight = at::randn({33, 70}, at::kBFloat16);
    const at::Tensor all = here::small_linear(x, weight);
    for (int64_t row = 0; row < 19; ++row) EXPECT_TRUE(at::equal(here::small_linear(x[row], weight), all[row]));
  });
}

TEST(SmallLinear, StridesDoNotMatter) {
  for_each_device([&] {
    const at::Tensor x = at::randn({70, 3}).t(), weight = at::randn({70, 66}).t().slice(0, 0, 66, 2);
    EXPECT_TRUE(at::equal(here::small_linear(x, weight), here::small_linear(x.contiguous(), weight.contiguous())));
  });
}

TEST(SmallLinear, SecondDerivative) {
  for_each_device([&] {
    const auto second = [](const Outcome::Function& function) {
      torch::manual_seed(2);
      const at::Tensor x = at::randn({3, 5}, at::kDouble).requires_grad_();
      const at::Tensor weight = at::randn({4, 5}, at::kDouble).requires_grad_();
      const at::Tensor dx = torch::autograd::grad({function(x, weight, {}).pow(3).sum()}, {x}, {}, true, true)[0];
      return torch::autograd::grad({dx.square().sum()}, {weight})[0];
    };
    expect_near("dweight", second(ops::small_linear), second(ops::small_linear_composite), kFloat64Backward);
  });
}

TEST(SmallLinear, Meta) {
  const at::Tensor y = here::small_linear(at::empty({2, 3, 5}, at::device(at::kMeta)),
                                          at::empty({7, 5}, at::device(at::kMeta).dtype(at::kBFloat16)));
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 3, 7}));
  EXPECT_EQ(y.scalar_type(), at::kFloat);
}

TEST(SmallLinear, ErrorsNameArgumentRuleAndValue) {
  const at::Tensor x = at::randn({2, 5}), weight = at::randn({7, 5});
  const auto text = [](const at::Tensor& x_, const at::Tensor& weight_, std::optional<at::Tensor> bias = {}) {
    return error_text([&] { here::small_linear(x_, weight_, bias); });
  };
  EXPECT_EQ(text(x, at::randn({7, 6})), "small_linear: weight must have shape (O, I) = (*, 5), got (7, 6)");
  EXPECT_EQ(text(x, weight, at::randn({6})), "small_linear: bias must have shape (O) = (7), got (6)");
  EXPECT_EQ(text(x, weight.to(at::kDouble)),
            "small_linear: weight must have the dtype of x (Float), BFloat16 or Half, got Double");
  EXPECT_EQ(text(x.to(at::kHalf), weight), "small_linear: weight must have the dtype of x (Half), got Float");
  EXPECT_EQ(text(x, weight.to(at::kMeta)), "small_linear: weight must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x, weight, at::randn({7}).to(at::kMeta)),
            "small_linear: bias must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(at::randn({}), weight), "small_linear: x must have shape (..., I), got a scalar");
}

TEST(Linear, BothWaysAgree) {
  for (const at::ScalarType weight_type : {at::kFloat, at::kBFloat16})
    for (const int64_t rows : {0, 1, 8, 9, 40})
      for (const bool gradient : {false, true}) {
        torch::manual_seed(rows);
        // Values that bfloat16 holds: rounding x then changes nothing.
        const at::Tensor x = at::randn({rows, 33}).to(at::kBFloat16).to(at::kFloat).requires_grad_(gradient);
        const at::Tensor weight = at::randn({20, 33}).to(weight_type), bias = at::randn({20});
        const at::Tensor y = ops::linear(x, weight, bias);
        EXPECT_EQ(y.requires_grad(), gradient);
        EXPECT_EQ(y.scalar_type(), at::kFloat);
        expect_near("y", y, ops::small_linear_composite(x, weight, bias),
                    weight_type == at::kFloat ? kFloat32Forward : Tolerance{1e-2, 1e-2});
      }
}

}  // namespace
}  // namespace adder::tests
