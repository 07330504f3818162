#include "adder/ops/add_norm.h"

#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using ops::AddNormOptions;
using testing::HasSubstr;

struct Case {
  std::string name;
  std::vector<int64_t> shape = {3, 5, 37};
  std::string kind = "rms";
  bool residual = true, bias = true;
  bool use_y = true, use_residual_out = true;
};

// Inputs in double, outputs and gradients of one run in a given type.
struct Outcome {
  at::Tensor y, residual_out;
  std::vector<at::Tensor> gradients;  // x, residual, weight, bias

  using Function = std::function<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const std::optional<at::Tensor>&,
                                                                    const at::Tensor&, const std::optional<at::Tensor>&,
                                                                    const AddNormOptions&)>;
  Outcome(const Function& function, const Case& c, at::ScalarType x_dtype, at::ScalarType out_dtype) {
    torch::manual_seed(1);
    const at::ScalarType real = x_dtype == at::kDouble ? at::kDouble : at::kFloat;
    // Values that all types hold.
    const auto values = [](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16).to(at::kHalf); };
    const at::Tensor x = leaf(values(c.shape), x_dtype), weight = leaf(values({c.shape.back()}), real);
    const at::Tensor residual = leaf(values(c.shape), real), bias = leaf(values({c.shape.back()}), real);
    const at::Tensor dy = values(c.shape), dresidual_out = values(c.shape);
    AddNormOptions options;
    options.kind = c.kind;
    options.out_dtype = out_dtype;
    std::tie(y, residual_out) = function(x, c.residual ? std::optional(residual) : std::nullopt, weight,
                                         c.bias ? std::optional(bias) : std::nullopt, options);
    at::Tensor loss = at::zeros({}, real);
    if (c.use_y) loss = loss + (y * dy.to(out_dtype)).to(real).sum();
    if (c.use_residual_out) loss = loss + (residual_out * dresidual_out.to(real)).sum();
    loss.backward();
    gradients = {x.grad(), residual.grad(), weight.grad(), bias.grad()};
  }
};

std::vector<Case> cases() {
  std::vector<Case> rows;
  for (const std::string kind : {"rms", "layer"}) {
    const auto row = [&](const std::string& name, auto change) {
      Case c;
      c.name = kind + "_" + name;
      c.kind = kind;
      change(c);
      rows.push_back(c);
    };
    row("base", [](auto&) {});
    row("no_residual", [](auto& c) { c.residual = false; });
    row("no_bias", [](auto& c) { c.bias = false; });
    row("only_y", [](auto& c) { c.use_residual_out = false; });
    row("only_residual_out", [](auto& c) { c.use_y = false; });
    row("one_row", [](auto& c) { c.shape = {64}; });
    row("no_rows", [](auto& c) { c.shape = {2, 0, 16}; });
    row("many_rows", [](auto& c) { c.shape = {1500, 33}; });
  }
  return rows;
}

class AddNorm : public testing::TestWithParam<Case> {};

void compare(const Case& c, at::ScalarType dtype, Tolerance forward, Tolerance backward) {
  const Outcome got(here::add_norm, c, dtype, dtype), expected(ops::add_norm_composite, c, at::kDouble, at::kDouble);
  EXPECT_EQ(got.y.scalar_type(), dtype);
  expect_near("y", got.y, expected.y, forward);
  expect_near("residual_out", got.residual_out, expected.residual_out, forward);
  const char* names[] = {"dx", "dresidual", "dweight", "dbias"};
  for (int i = 0; i < 4; ++i) {
    // Where y is not used the composite has no gradient for weight and bias; the operator gives zeros.
    const at::Tensor &a = got.gradients[i], &b = expected.gradients[i];
    ASSERT_TRUE(a.defined() || !b.defined()) << names[i];
    if (a.defined()) expect_near(names[i], a, b.defined() ? b : at::zeros_like(a), backward);
  }
}

TEST_P(AddNorm, Float32) {
  for_each_device([&] { compare(GetParam(), at::kFloat, kFloat32Forward, kFloat32Backward); });
}
TEST_P(AddNorm, Float64) {
  for_each_device([&] { compare(GetParam(), at::kDouble, kFloat64Forward, kFloat64Backward); });
}

TEST_P(AddNorm, NarrowTypesErrAtMostTwiceAsMuchAsTheComposite) {
  for_each_device([&] {
    const Case& c = GetParam();
    const Outcome truth(ops::add_norm_composite, c, at::kDouble, at::kDouble);
    for (const auto& [x, out] : {std::pair(at::kBFloat16, at::kBFloat16),
                                 {at::kHalf, at::kHalf},
                                 {at::kFloat, at::kBFloat16},
                                 {at::kBFloat16, at::kFloat}}) {
      const Outcome got(here::add_norm, c, x, out), composite(ops::add_norm_composite, c, x, out);
      const auto check = [&](const char* name, const at::Tensor& a, const at::Tensor& b, const at::Tensor& t) {
        SCOPED_TRACE(testing::Message() << x << " " << out);
        EXPECT_EQ(a.scalar_type(), b.scalar_type()) << name;
        expect_at_most_twice_the_error(name, a, b, t);
      };
      check("y", got.y, composite.y, truth.y);
      check("residual_out", got.residual_out, composite.residual_out, truth.residual_out);
      const char* names[] = {"dx", "dresidual", "dweight", "dbias"};
      for (int i = 0; i < 4; ++i)
        if (truth.gradients[i].defined()) check(names[i], got.gradients[i], composite.gradients[i], truth.gradients[i]);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, AddNorm, testing::ValuesIn(cases()), [](const auto& test) { return test.param.name; });

TEST(AddNormOp, OutputsAliasNoInputAndStridesDoNotMatter) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 6, 20}), weight = at::randn({20});
    const auto [y, residual_out] = here::add_norm(x, {}, weight, {});
    EXPECT_NE(residual_out.data_ptr(), x.data_ptr());
    EXPECT_TRUE(at::equal(residual_out, x));
    const at::Tensor view = at::randn({6, 40, 4}).permute({2, 0, 1}).slice(2, 0, 40, 2);
    const auto [a, ra] = here::add_norm(view, view, weight, {});
    const auto [b, rb] = here::add_norm(view.contiguous(), view.contiguous(), weight, {});
    EXPECT_TRUE(at::equal(a, b) && at::equal(ra, rb));
  });
}

TEST(AddNormOp, WeightsOfOtherTypesGetGradientsOfTheirType) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 20}, at::kBFloat16), weight = at::randn({20}, at::kBFloat16).requires_grad_();
    const at::Tensor bias = at::randn({20}, at::kHalf).requires_grad_();
    std::get<0>(here::add_norm(x, {}, weight, bias)).sum().backward();
    EXPECT_EQ(weight.grad().scalar_type(), at::kBFloat16);
    EXPECT_EQ(bias.grad().scalar_type(), at::kHalf);
  });
}

TEST(AddNormOp, Meta) {
  const at::Tensor x = at::empty({4, 7, 20}, at::device(at::kMeta).dtype(at::kBFloat16));
  const at::Tensor weight = at::empty({20}, at::device(at::kMeta));
  AddNormOptions options;
  options.out_dtype = at::kHalf;
  const auto [y, residual_out] = here::add_norm(x, {}, weight, {}, options);
  EXPECT_EQ(y.sizes(), x.sizes());
  EXPECT_EQ(y.scalar_type(), at::kHalf);
  EXPECT_EQ(residual_out.scalar_type(), at::kFloat);
}

TEST(AddNormOp, SecondDerivativesAreRefused) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 20}).requires_grad_(), weight = at::randn({20});
    const at::Tensor y = std::get<0>(here::add_norm(x, {}, weight, {}));
    const at::Tensor first = torch::autograd::grad({y.sum()}, {x}, {}, true, true)[0];
    EXPECT_THAT(error_text([&] { first.sum().backward(); }), HasSubstr("add_norm: has no second derivative"));
  });
}

TEST(AddNormOp, ErrorsNameArgumentRuleAndValue) {
  const at::Tensor x = at::randn({2, 3, 20}), weight = at::randn({20});
  const auto text = [&](const at::Tensor& x_, std::optional<at::Tensor> residual, const at::Tensor& weight_,
                        std::optional<at::Tensor> bias, AddNormOptions options = {}) {
    return error_text([&] { here::add_norm(x_, residual, weight_, bias, options); });
  };
  EXPECT_EQ(text(x, {}, at::randn({19}), {}), "add_norm: weight must have shape (D) = (20), got (19)");
  EXPECT_EQ(text(x, {}, weight, at::randn({1, 20})), "add_norm: bias must have shape (D) = (20), got (1, 20)");
  EXPECT_EQ(text(x, at::randn({3, 20}), weight, {}),
            "add_norm: residual must have the shape of x (..., D) = [2, 3, 20], got [3, 20]");
  EXPECT_EQ(text(x, x.to(at::kBFloat16), weight, {}), "add_norm: residual must have dtype Float, got BFloat16");
  EXPECT_EQ(text(x, {}, weight.to(at::kMeta), {}), "add_norm: weight must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x, {}, weight, weight.to(at::kMeta)), "add_norm: bias must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x, x.to(at::kMeta), weight, {}), "add_norm: residual must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x.to(at::kLong), {}, weight, {}),
            "add_norm: x must have dtype Float, Double, BFloat16 or Half, got Long");
  EXPECT_EQ(text(at::randn({3, 0}), {}, at::randn({0}), {}),
            "add_norm: x must have shape (..., D) with D from 1, got [3, 0]");
  EXPECT_EQ(text(x, {}, weight, {}, {.kind = "batch"}), "add_norm: kind must be \"rms\" or \"layer\", got \"batch\"");
  EXPECT_EQ(text(x, {}, weight, {}, {.eps = -1}), "add_norm: eps must not be negative, got -1");
  EXPECT_EQ(text(x, {}, weight, {}, {.out_dtype = at::kDouble}),
            "add_norm: out_dtype must be Float, BFloat16 or Half where x is Float, got Double");
}

}  // namespace
}  // namespace adder::tests
