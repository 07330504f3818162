#include "adder/ops/causal_conv1d.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "tests/tolerances.h"

namespace adder::ops {
namespace {

using tests::Tolerance;
using torch::Tensor;

// One problem: its arguments, and the gradients that come in.
struct Problem {
  Tensor x, weight, bias;  // bias may be undefined
  CausalConv1dOptions options;
  Tensor dy, dwindow;
};

struct Row {
  int64_t batch = 2, length = 17, channels = 5, width = 4;
  bool silu = true, bias = true, window = true, mask = false, reverse = false;
  std::vector<int64_t> cu_seqlens = {};
  at::ScalarType type = at::kDouble;
};

Problem make(const Row& row) {
  torch::manual_seed(3);
  Problem p;
  const at::ScalarType real = row.type == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t sequences = row.cu_seqlens.empty() ? row.batch : static_cast<int64_t>(row.cu_seqlens.size()) - 1;
  const auto draw = [](at::IntArrayRef sizes, at::ScalarType type) {
    return torch::randn(sizes, at::kDouble).to(type);
  };
  p.x = draw({row.batch, row.length, row.channels}, row.type);
  p.weight = draw({row.channels, row.width}, real);
  if (row.bias) p.bias = draw({row.channels}, real);
  p.options.activation = row.silu ? "silu" : "none";
  if (row.window) p.options.initial_window = draw({sequences, row.width - 1, row.channels}, real);
  if (row.mask) p.options.mask = torch::rand({row.batch, row.length}) < 0.7;
  if (!row.cu_seqlens.empty()) p.options.cu_seqlens = torch::tensor(row.cu_seqlens, at::kLong);
  p.options.reverse = row.reverse;
  p.dy = draw({row.batch, row.length, row.channels}, row.type);
  p.dwindow = draw({sequences, row.width - 1, row.channels}, real);
  return p;
}

std::optional<Tensor> optional(const Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

struct Results {
  Tensor y, final_window, dx, dweight, dbias, dinitial_window;
};

template <typename Op>
Results run(const Op& op, Problem p) {
  std::vector<Tensor> inputs;
  const auto leaf = [&](Tensor& t) {
    t = t.detach().clone().requires_grad_();
    inputs.push_back(t);
  };
  leaf(p.x);
  leaf(p.weight);
  if (p.bias.defined()) leaf(p.bias);
  if (p.options.initial_window) leaf(*p.options.initial_window);
  const auto [y, window] = op(p.x, p.weight, optional(p.bias), p.options);
  auto grads = torch::autograd::grad({y, window}, inputs, {p.dy, p.dwindow}, {}, false, true);
  for (size_t i = 0; i < grads.size(); ++i)
    if (!grads[i].defined()) grads[i] = torch::zeros_like(inputs[i]);
  Results r{y.detach(), window.detach(), grads[0], grads[1], {}, {}};
  size_t next = 2;
  if (p.bias.defined()) r.dbias = grads[next++];
  if (p.options.initial_window) r.dinitial_window = grads[next++];
  return r;
}

void expect_close(const char* what, const Tensor& got, const Tensor& expected, Tolerance tolerance) {
  ASSERT_EQ(got.defined(), expected.defined()) << what;
  if (!got.defined()) return;
  ASSERT_EQ(got.sizes(), expected.sizes()) << what;
  EXPECT_EQ(got.scalar_type(), expected.scalar_type()) << what;
  if (got.numel() == 0) return;
  const Tensor a = got.to(at::kDouble).contiguous(), b = expected.to(at::kDouble).contiguous();
  const double scale = b.abs().max().item<double>();
  for (int64_t i = 0; i < a.numel(); ++i)
    ASSERT_TRUE(tests::near(a.data_ptr<double>()[i], b.data_ptr<double>()[i], scale, tolerance))
        << what << "[" << i << "]: got " << a.data_ptr<double>()[i] << ", expected " << b.data_ptr<double>()[i];
}

void expect_close(const Results& got, const Results& expected, Tolerance forward, Tolerance backward) {
  expect_close("y", got.y, expected.y, forward);
  expect_close("final_window", got.final_window, expected.final_window, forward);
  expect_close("dx", got.dx, expected.dx, backward);
  expect_close("dweight", got.dweight, expected.dweight, backward);
  expect_close("dbias", got.dbias, expected.dbias, backward);
  expect_close("dinitial_window", got.dinitial_window, expected.dinitial_window, backward);
}

void expect_equal(const Tensor& a, const Tensor& b) {
  EXPECT_TRUE(torch::equal(a, b)) << a << "\n" << b;
}

TEST(CausalConv1d, EqualsComposite) {
  std::vector<Row> rows;
  for (const int64_t length : {0, 1, 2, 3, 17, 65})
    for (const int64_t width : {1, 2, 3, 4, 7})
      for (const bool reverse : {false, true}) rows.push_back({.length = length, .width = width, .reverse = reverse});
  for (const int64_t width : {1, 4, 6}) {
    rows.push_back({.width = width, .silu = false});
    rows.push_back({.width = width, .bias = false});
    rows.push_back({.width = width, .window = false});
    for (const bool reverse : {false, true}) {
      rows.push_back({.width = width, .mask = true, .reverse = reverse});
      for (const bool mask : {false, true})
        rows.push_back(
            {.batch = 1, .width = width, .mask = mask, .reverse = reverse, .cu_seqlens = {0, 0, 1, 3, 12, 12, 17}});
    }
  }
  for (Row row : rows) {
    SCOPED_TRACE("L" + std::to_string(row.length) + " K" + std::to_string(row.width) + (row.mask ? " mask" : "") +
                 (row.reverse ? " reverse" : "") + (row.cu_seqlens.empty() ? "" : " packed"));
    const Problem p = make(row);
    expect_close(run(causal_conv1d, p), run(causal_conv1d_composite, p), tests::kFloat64Forward,
                 tests::kFloat64Backward);
    row.type = at::kFloat;
    const Problem single = make(row);
    expect_close(run(causal_conv1d, single), run(causal_conv1d_composite, single), tests::kFloat32Forward,
                 tests::kFloat32Backward);
  }
}

// The directional derivative along a random direction, by central differences.
TEST(CausalConv1d, FiniteDifferences) {
  for (const Row& row : {Row{}, Row{.silu = false, .reverse = true}, Row{.length = 2, .mask = true},
                         Row{.batch = 1, .width = 6, .mask = true, .cu_seqlens = {0, 3, 3, 17}}}) {
    const Problem p = make(row);
    const Results r = run(causal_conv1d, p);
    const auto loss = [&](const Problem& q) {
      const auto [y, window] = causal_conv1d(q.x, q.weight, optional(q.bias), q.options);
      return ((y * p.dy).sum() + (window * p.dwindow).sum()).item<double>();
    };
    const auto check = [&](const char* what, const auto& part, const Tensor& gradient) {
      constexpr double kStep = 1e-5;
      const Tensor direction = torch::randn(gradient.sizes(), at::kDouble);
      Problem more = p, less = p;
      part(more) = part(more) + kStep * direction;
      part(less) = part(less) - kStep * direction;
      EXPECT_NEAR((loss(more) - loss(less)) / (2 * kStep), (direction * gradient).sum().item<double>(), 1e-7) << what;
    };
    check("x", [](Problem& q) -> Tensor& { return q.x; }, r.dx);
    check("weight", [](Problem& q) -> Tensor& { return q.weight; }, r.dweight);
    check("bias", [](Problem& q) -> Tensor& { return q.bias; }, r.dbias);
    check("initial_window", [](Problem& q) -> Tensor& { return *q.options.initial_window; }, r.dinitial_window);
  }
}

// Any way of cutting a sequence gives the outputs and windows of the whole to the bit, and its gradients.
TEST(CausalConv1d, CutsEqualTheWhole) {
  const std::vector<std::vector<int64_t>> ways = {
      {0, 17}, {17, 0}, {1, 16},       {2, 15},          {3, 14},
      {8, 9},  {16, 1}, {5, 0, 0, 12}, {3, 1, 1, 1, 11}, std::vector<int64_t>(17, 1)};
  for (const bool reverse : {false, true})
    for (const bool mask : {false, true})
      for (const int64_t width : {1, 2, 4, 6}) {
        const Problem p = make({.width = width, .mask = mask, .reverse = reverse});
        const Results whole = run(causal_conv1d, p);
        for (const std::vector<int64_t>& pieces : ways) {
          const Results cut = run(
              [&](const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, CausalConv1dOptions o) {
                std::vector<Tensor> ys;
                int64_t done = 0;
                for (const int64_t piece : pieces) {
                  const int64_t first = reverse ? x.size(1) - done - piece : done;
                  if (mask) o.mask = p.options.mask->slice(1, first, first + piece);
                  auto [y, window] = causal_conv1d(x.slice(1, first, first + piece), weight, bias, o);
                  ys.insert(reverse ? ys.begin() : ys.end(), y);
                  o.initial_window = window;
                  done += piece;
                }
                return std::tuple(torch::cat(ys, 1), *o.initial_window);
              },
              p);
          expect_equal(cut.y, whole.y);
          expect_equal(cut.final_window, whole.final_window);
          expect_close(cut, whole, tests::kFloat64Forward, tests::kFloat64Backward);
        }
      }
}

TEST(CausalConv1d, PackedEqualsSeparate) {
  const std::vector<int64_t> cu = {0, 0, 1, 3, 12, 12, 17};
  for (const bool reverse : {false, true}) {
    const Problem p = make({.batch = 1, .reverse = reverse, .cu_seqlens = cu});
    const Results packed = run(causal_conv1d, p);
    const Results separate = run(
        [&](const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const CausalConv1dOptions& o) {
          std::vector<Tensor> ys, windows;
          for (size_t s = 0; s + 1 < cu.size(); ++s) {
            CausalConv1dOptions one{.activation = o.activation, .reverse = o.reverse};
            const auto index = static_cast<int64_t>(s);
            one.initial_window = o.initial_window->slice(0, index, index + 1);
            auto [y, window] = causal_conv1d(x.slice(1, cu[s], cu[s + 1]), weight, bias, one);
            ys.push_back(y);
            windows.push_back(window);
          }
          return std::tuple(torch::cat(ys, 1), torch::cat(windows));
        },
        p);
    expect_equal(packed.y, separate.y);
    expect_equal(packed.final_window, separate.final_window);
    expect_close(packed, separate, tests::kFloat64Forward, tests::kFloat64Backward);
  }
}

// Rows of ragged lengths, padded with NaN on either side, against each row alone.
TEST(CausalConv1d, MaskedPaddingEqualsUnpadded) {
  const std::vector<std::pair<int64_t, int64_t>> kept = {{0, 17}, {6, 17}, {0, 9}, {4, 6}, {5, 5}};
  const auto rows = static_cast<int64_t>(kept.size());
  for (const bool reverse : {false, true}) {
    Problem p = make({.batch = rows, .reverse = reverse});
    p.options.mask = torch::zeros({rows, 17}, at::kBool);
    for (int64_t b = 0; b < rows; ++b) p.options.mask->index({b}).slice(0, kept[b].first, kept[b].second).fill_(true);
    const Tensor padding = p.options.mask->logical_not().unsqueeze(2);
    p.x = p.x.masked_fill(padding, std::nan(""));
    const Results masked = run(causal_conv1d, p);
    expect_equal(masked.y.masked_select(padding), torch::zeros({padding.sum().item<int64_t>() * 5}, at::kDouble));
    const Results unpadded = run(
        [&](const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const CausalConv1dOptions& o) {
          std::vector<Tensor> ys, windows;
          for (int64_t b = 0; b < rows; ++b) {
            CausalConv1dOptions one{.activation = o.activation, .reverse = o.reverse};
            one.initial_window = o.initial_window->slice(0, b, b + 1);
            const auto [first, last] = kept[b];
            auto [y, window] = causal_conv1d(x.slice(0, b, b + 1).slice(1, first, last), weight, bias, one);
            ys.push_back(torch::constant_pad_nd(y, {0, 0, first, 17 - last}));
            windows.push_back(window);
          }
          return std::tuple(torch::cat(ys), torch::cat(windows));
        },
        p);
    expect_equal(masked.y, unpadded.y);
    expect_equal(masked.final_window, unpadded.final_window);
    expect_close(masked, unpadded, tests::kFloat64Forward, tests::kFloat64Backward);
  }
}

TEST(CausalConv1d, LowPrecisionErrorAtMostTwiceTheComposites) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf})
    for (const bool mask : {false, true}) {
      const Problem p = make({.length = 129, .channels = 35, .mask = mask, .type = type});
      Problem wide = p;
      for (Tensor* t : {&wide.x, &wide.weight, &wide.bias, &wide.dy, &wide.dwindow}) *t = t->to(at::kDouble);
      wide.options.initial_window = wide.options.initial_window->to(at::kDouble);
      const Results truth = run(causal_conv1d_composite, wide), op = run(causal_conv1d, p),
                    composite = run(causal_conv1d_composite, p);
      const auto check = [&](const char* what, Tensor Results::*of) {
        const auto error = [&](const Results& r) {
          return ((r.*of).to(at::kDouble) - truth.*of).abs().max().item<double>();
        };
        EXPECT_LE(error(op), 2 * error(composite) + 1e-12) << what << " " << type;
      };
      check("y", &Results::y);
      check("final_window", &Results::final_window);
      check("dx", &Results::dx);
      check("dweight", &Results::dweight);
      check("dbias", &Results::dbias);
      check("dinitial_window", &Results::dinitial_window);
    }
}

TEST(CausalConv1d, StridedAndBroadcastInputs) {
  const Problem p = make({});
  const auto expected = std::get<0>(causal_conv1d(p.x, p.weight, p.bias, p.options));
  const Tensor wide = torch::cat({torch::randn_like(p.x), p.x}, 2);
  CausalConv1dOptions options = p.options;
  options.initial_window = p.options.initial_window->transpose(0, 2).contiguous().transpose(0, 2);
  expect_equal(std::get<0>(causal_conv1d(wide.chunk(2, 2)[1], p.weight, p.bias, options)), expected);
  expect_equal(std::get<0>(causal_conv1d(p.x.transpose(1, 2).contiguous().transpose(1, 2),
                                         p.weight.t().contiguous().t(), p.bias, p.options)),
               expected);
  const Tensor broadcast = p.x.slice(1, 0, 1).expand({2, 17, 5});
  expect_equal(std::get<0>(causal_conv1d(broadcast, p.weight, p.bias, p.options)),
               std::get<0>(causal_conv1d(broadcast.contiguous(), p.weight, p.bias, p.options)));
}

TEST(CausalConv1d, GradientOfOneOutputAlone) {
  for (const bool through_y : {false, true}) {
    const Problem p = make({});
    const auto gradient = [&](const auto& op) {
      const Tensor x = p.x.clone().requires_grad_();
      const auto [y, window] = op(x, p.weight, p.bias, p.options);
      return torch::autograd::grad({through_y ? y.sum() : window.sum()}, {x})[0];
    };
    expect_close("dx", gradient(causal_conv1d), gradient(causal_conv1d_composite), tests::kFloat64Backward);
  }
}

TEST(CausalConv1d, EmptyInputs) {
  const Problem none = make({.batch = 0});
  const Results r = run(causal_conv1d, none);
  EXPECT_EQ(r.y.sizes(), (std::vector<int64_t>{0, 17, 5}));
  EXPECT_EQ(r.final_window.sizes(), (std::vector<int64_t>{0, 3, 5}));
  expect_equal(r.dweight, torch::zeros({5, 4}, at::kDouble));
  expect_equal(r.dbias, torch::zeros({5}, at::kDouble));

  const Problem p = make({.length = 0});
  const auto [y, window] = causal_conv1d(p.x, p.weight, p.bias, p.options);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 0, 5}));
  expect_equal(window, *p.options.initial_window);
  EXPECT_FALSE(window.is_alias_of(*p.options.initial_window));
  expect_equal(run(causal_conv1d, p).dinitial_window, p.dwindow);

  const Problem no_sequence = make({.batch = 1, .length = 0, .cu_seqlens = {0}});
  EXPECT_EQ(run(causal_conv1d, no_sequence).final_window.size(0), 0);
}

TEST(CausalConv1d, MetaTensorsHaveTheShapesOfTheResult) {
  const Problem p = make({.batch = 1, .cu_seqlens = {0, 4, 17}});
  const auto meta = [](const Tensor& t) { return t.to(at::kMeta); };
  const auto [y, window] =
      causal_conv1d(meta(p.x.to(at::kBFloat16)), meta(p.weight.to(at::kFloat)), meta(p.bias.to(at::kFloat)),
                    {.activation = "silu", .cu_seqlens = p.options.cu_seqlens});
  EXPECT_TRUE(y.is_meta());
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(y.sizes(), p.x.sizes());
  EXPECT_EQ(window.scalar_type(), at::kFloat);
  EXPECT_EQ(window.sizes(), (std::vector<int64_t>{2, 3, 5}));
}

TEST(CausalConv1d, SecondDerivativeIsRefused) {
  const Problem p = make({});
  const Tensor x = p.x.clone().requires_grad_();
  const Tensor y = std::get<0>(causal_conv1d(x, p.weight, p.bias, p.options));
  try {
    torch::autograd::grad({y.sum()}, {x}, {}, true, true);
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("causal_conv1d: has no second derivative"));
  }
}

void expect_error(const std::string& text, const std::function<void(Problem&)>& spoil, const Row& row = {}) {
  Problem p = make(row);
  spoil(p);
  try {
    causal_conv1d(p.x, p.weight, optional(p.bias), p.options);
    ADD_FAILURE() << "no error, expected: " << text;
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(error.what_without_backtrace(), testing::StartsWith("causal_conv1d: " + text));
  }
}

TEST(CausalConv1d, Errors) {
  const Row packed{.batch = 1, .cu_seqlens = {0, 4, 17}};
  expect_error("x must have shape (B, L, D) = (*, *, *), got (2, 85)", [](Problem& p) { p.x = p.x.flatten(1); });
  expect_error("x must have dtype Float, Double, BFloat16 or Half, got Int",
               [](Problem& p) { p.x = p.x.to(at::kInt); });
  expect_error("weight must have dtype Float, got Double", [](Problem& p) { p.x = p.x.to(at::kBFloat16); });
  expect_error("weight must have shape (D, K) = (5, *), got (4, 4)",
               [](Problem& p) { p.weight = p.weight.slice(0, 0, 4); });
  expect_error("weight must have shape (D, K) with a width K of at least 1, got K = 0",
               [](Problem& p) { p.weight = p.weight.slice(1, 0, 0); });
  expect_error("weight must be on the device of x (cpu), got meta",
               [](Problem& p) { p.weight = p.weight.to(at::kMeta); });
  expect_error("bias must have shape (D) = (5), got (3)", [](Problem& p) { p.bias = p.bias.slice(0, 0, 3); });
  expect_error("bias must have dtype Double, got Float", [](Problem& p) { p.bias = p.bias.to(at::kFloat); });
  expect_error("activation must be \"none\" or \"silu\", got \"relu\"",
               [](Problem& p) { p.options.activation = "relu"; });
  expect_error("initial_window must have shape (S, K - 1, D) = (2, 3, 5), got (2, 4, 5)",
               [](Problem& p) { p.options.initial_window = torch::zeros({2, 4, 5}, at::kDouble); });
  expect_error("initial_window must have dtype Double, got Float",
               [](Problem& p) { p.options.initial_window = torch::zeros({2, 3, 5}); });
  expect_error("mask must have shape (B, L) = (2, 17), got (2, 16)",
               [](Problem& p) { p.options.mask = torch::ones({2, 16}, at::kBool); });
  expect_error("mask must have dtype Bool, got Float", [](Problem& p) { p.options.mask = torch::ones({2, 17}); });
  expect_error(
      "cu_seqlens must have dtype Long, got Int",
      [](Problem& p) { p.options.cu_seqlens = p.options.cu_seqlens->to(at::kInt); }, packed);
  expect_error("cu_seqlens packs sequences into one row, so B must be 1, got 2",
               [](Problem& p) { p.options.cu_seqlens = torch::tensor({0, 17}, at::kLong); });
  const auto with = [](std::vector<int64_t> values) {
    return [values](Problem& p) { p.options.cu_seqlens = torch::tensor(values, at::kLong); };
  };
  expect_error("cu_seqlens must start at 0, got 1", with({1, 4, 17}), packed);
  expect_error("cu_seqlens must never fall, got 9 then 4 at index 2", with({0, 9, 4}), packed);
  expect_error("cu_seqlens must end at L = 17, got 16", with({0, 4, 16}), packed);
  expect_error("initial_window must have shape (S, K - 1, D) = (3, 3, 5), got (2, 3, 5)", with({0, 4, 8, 17}), packed);
}

}  // namespace
}  // namespace adder::ops
