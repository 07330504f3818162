#include "adder/ops/linear_cross_entropy.h"

#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

using testing::HasSubstr;

struct Case {
  std::string name;
  int64_t rows = 11, width = 13, weight_rows = 37, vocab = -1;
  int64_t ignored_every = 4;  // 0: none
  double dloss = 1;
};

struct Outcome {
  at::Tensor loss, row_losses, predictions, dx, dweight;

  using Function = std::function<std::tuple<at::Tensor, at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                                                const at::Tensor&, int64_t, int64_t)>;
  Outcome(const Function& function, const Case& c, at::ScalarType x_dtype, at::ScalarType weight_dtype) {
    torch::manual_seed(1);
    const at::Tensor x = leaf(at::randn({c.rows, c.width}).to(at::kBFloat16), x_dtype);
    const at::Tensor weight = leaf(at::randn({c.weight_rows, c.width}).to(at::kBFloat16), weight_dtype);
    at::Tensor target = at::randint(c.vocab == -1 ? c.weight_rows : c.vocab, {c.rows}, at::kLong);
    if (c.ignored_every > 0) target.slice(0, 0, c.rows, c.ignored_every).fill_(-100);
    std::tie(loss, row_losses, predictions) = function(x, weight, target, -100, c.vocab);
    (loss * c.dloss).backward();
    dx = x.grad();
    dweight = weight.grad();
  }
};

std::vector<Case> cases() {
  std::vector<Case> rows;
  const auto row = [&](const std::string& name, auto change) {
    Case c;
    c.name = name;
    change(c);
    rows.push_back(c);
  };
  row("base", [](auto&) {});
  row("padded_vocabulary", [](auto& c) { c.vocab = 29; });
  row("none_ignored", [](auto& c) { c.ignored_every = 0; });
  row("all_ignored", [](auto& c) { c.ignored_every = 1; });
  row("no_rows", [](auto& c) { c.rows = 0; });
  row("one_row", [](auto& c) { c.rows = 1, c.ignored_every = 0; });
  row("one_token", [](auto& c) { c.weight_rows = 1; });
  row("scaled_loss", [](auto& c) { c.dloss = 0.3; });
  row("several_blocks", [](auto& c) { c.rows = 1700, c.weight_rows = 20011, c.vocab = 20001, c.width = 5; });
  return rows;
}

class LinearCrossEntropy : public testing::TestWithParam<Case> {};

void compare(const Case& c, at::ScalarType dtype, Tolerance forward, Tolerance backward) {
  const Outcome got(here::linear_cross_entropy, c, dtype, dtype);
  const Outcome expected(ops::linear_cross_entropy_composite, c, at::kDouble, at::kDouble);
  expect_near("loss", got.loss, expected.loss, forward);
  expect_near("row_losses", got.row_losses, expected.row_losses, forward);
  EXPECT_TRUE(at::equal(got.predictions, expected.predictions));
  expect_near("dx", got.dx, expected.dx, backward);
  expect_near("dweight", got.dweight, expected.dweight, backward);
}

TEST_P(LinearCrossEntropy, Float32) {
  for_each_device([&] { compare(GetParam(), at::kFloat, kFloat32Forward, kFloat32Backward); });
}
TEST_P(LinearCrossEntropy, Float64) {
  for_each_device([&] { compare(GetParam(), at::kDouble, kFloat64Forward, kFloat64Backward); });
}

TEST_P(LinearCrossEntropy, NarrowTypesErrAtMostTwiceAsMuchAsTheComposite) {
  for_each_device([&] {
    const Case& c = GetParam();
    const Outcome truth(ops::linear_cross_entropy_composite, c, at::kDouble, at::kDouble);
    for (const auto& [x, weight] : {std::pair(at::kBFloat16, at::kBFloat16),
                                    {at::kBFloat16, at::kFloat},
                                    {at::kHalf, at::kHalf},
                                    {at::kHalf, at::kFloat}}) {
      SCOPED_TRACE(testing::Message() << x << " " << weight);
      const Outcome got(here::linear_cross_entropy, c, x, weight);
      const Outcome composite(ops::linear_cross_entropy_composite, c, x, weight);
      EXPECT_EQ(got.dx.scalar_type(), x);
      EXPECT_EQ(got.dweight.scalar_type(), weight);
      EXPECT_EQ(got.row_losses.scalar_type(), at::kFloat);
      expect_at_most_twice_the_error("row_losses", got.row_losses, composite.row_losses, truth.row_losses);
      expect_at_most_twice_the_error("dx", got.dx, composite.dx, truth.dx);
      expect_at_most_twice_the_error("dweight", got.dweight, composite.dweight, truth.dweight);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, LinearCrossEntropy, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

TEST(LinearCrossEntropyOp, AKnownValue) {
  for_each_device([&] {
    const at::Tensor x = at::zeros({2, 3}), weight = at::ones({5, 3}), target = at::tensor({0, 4}, at::kLong);
    const auto [loss, row_losses, predictions] = here::linear_cross_entropy(x, weight, target);
    EXPECT_NEAR(loss.item<float>(), std::log(5.0f), 1e-6f);
    EXPECT_FALSE(loss.requires_grad());
  });
}

// A vocabulary of several parts, on threads that have to see the mode of their caller.
TEST(LinearCrossEntropyOp, InferenceMode) {
  for_each_device([&] {
    const at::Tensor x = at::randn({6, 8}), weight = at::randn({5000, 8}).requires_grad_();
    const at::Tensor target = at::randint(5000, {6}, at::kLong);
    const at::Tensor expected = std::get<0>(here::linear_cross_entropy(x, weight, target)).detach();
    const c10::InferenceMode inference;
    const at::Tensor loss = std::get<0>(here::linear_cross_entropy(x.clone(), weight, target));
    EXPECT_TRUE(at::equal(loss, expected));
    EXPECT_FALSE(loss.requires_grad());
  });
}

TEST(LinearCrossEntropyOp, GradientTwiceFromOneGraph) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 3}).requires_grad_(), weight = at::randn({5, 3}).requires_grad_();
    const at::Tensor loss = std::get<0>(here::linear_cross_entropy(x, weight, at::tensor({0, 4, 1, 1}, at::kLong)));
    loss.backward({}, true);
    const at::Tensor once = weight.grad().clone();
    loss.backward();
    EXPECT_TRUE(at::equal(weight.grad(), once * 2));
  });
}

TEST(LinearCrossEntropyOp, NanInOneRowIsSeen) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 3}), weight = at::randn({5, 3});
    x[2][1] = std::nan("");
    const auto [loss, row_losses, predictions] =
        here::linear_cross_entropy(x, weight, at::tensor({0, 4, 1, 1}, at::kLong));
    EXPECT_TRUE(std::isnan(loss.item<float>()));
    EXPECT_EQ(row_losses.isnan().sum().item<int64_t>(), 1);
  });
}

TEST(LinearCrossEntropyOp, Meta) {
  const auto meta = at::device(at::kMeta);
  const auto [loss, row_losses, predictions] =
      here::linear_cross_entropy(at::empty({4, 3}, meta.dtype(at::kBFloat16)),
                                 at::empty({5, 3}, meta.dtype(at::kFloat)), at::empty({4}, meta.dtype(at::kLong)));
  EXPECT_EQ(loss.dim(), 0);
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  EXPECT_EQ(row_losses.size(0), 4);
  EXPECT_EQ(predictions.scalar_type(), at::kLong);
}

TEST(LinearCrossEntropyOp, SecondDerivativesAreRefused) {
  for_each_device([&] {
    const at::Tensor x = at::randn({4, 3}).requires_grad_(), weight = at::randn({5, 3});
    const at::Tensor loss = std::get<0>(here::linear_cross_entropy(x, weight, at::tensor({0, 4, 1, 1}, at::kLong)));
    const at::Tensor first = torch::autograd::grad({loss * 2}, {x}, {}, true, true)[0];
    EXPECT_THAT(error_text([&] { first.sum().backward(); }),
                HasSubstr("linear_cross_entropy: has no second derivative"));
  });
}

TEST(LinearCrossEntropyOp, ErrorsNameArgumentRuleAndValue) {
  const at::Tensor x = at::randn({4, 3}), weight = at::randn({5, 3}), target = at::tensor({0, 4, 1, -100}, at::kLong);
  const auto text = [](const at::Tensor& x_, const at::Tensor& weight_, const at::Tensor& target_, int64_t vocab = -1) {
    return error_text([&] { here::linear_cross_entropy(x_, weight_, target_, -100, vocab); });
  };
  EXPECT_EQ(text(x, weight, at::tensor({0, 5, 1, 1}, at::kLong)),
            "linear_cross_entropy: target must lie in [0, vocab) = [0, 5) or be ignore_index (-100), got 5 in row 1");
  EXPECT_EQ(text(x, weight, target, 4),
            "linear_cross_entropy: target must lie in [0, vocab) = [0, 4) or be ignore_index (-100), got 4 in row 1");
  EXPECT_EQ(text(x, weight, at::tensor({0, 4, -1, 1}, at::kLong)),
            "linear_cross_entropy: target must lie in [0, vocab) = [0, 5) or be ignore_index (-100), got -1 in row 2");
  EXPECT_EQ(text(x, weight, target, 6), "linear_cross_entropy: vocab must be -1 or lie in [1, V] = [1, 5], got 6");
  EXPECT_EQ(text(x, weight, target, 0), "linear_cross_entropy: vocab must be -1 or lie in [1, V] = [1, 5], got 0");
  EXPECT_EQ(text(x, at::randn({5, 4}), target),
            "linear_cross_entropy: weight must have shape (V, D) = (*, 3), got (5, 4)");
  EXPECT_EQ(text(x, weight, target.slice(0, 0, 3)), "linear_cross_entropy: target must have shape (M) = (4), got (3)");
  EXPECT_EQ(text(x, weight, target.to(at::kInt)), "linear_cross_entropy: target must have dtype Long, got Int");
  EXPECT_EQ(text(x.to(at::kInt), weight, target),
            "linear_cross_entropy: x must have dtype Float, Double, BFloat16 or Half, got Int");
  EXPECT_EQ(text(x.to(at::kHalf), weight.to(at::kBFloat16), target),
            "linear_cross_entropy: weight must have the dtype of x (Half) or Float, got BFloat16");
  EXPECT_EQ(text(x, weight.to(at::kMeta), target),
            "linear_cross_entropy: weight must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x, weight, target.to(at::kMeta)),
            "linear_cross_entropy: target must be on the device of x (cpu), got meta");
  EXPECT_EQ(text(x, weight.to(at::kBFloat16), target),
            "linear_cross_entropy: weight must have the dtype of x (Float), got BFloat16");
}

}  // namespace
}  // namespace adder::tests
