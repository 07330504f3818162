#include "tests/ops/conv_arguments.h"

namespace adder::tests {
namespace {

TEST(CausalConv1d, EqualsComposite) {
  for_each_device([&] {
    std::vector<ConvCase> rows;
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
    for (ConvCase row : rows) {
      SCOPED_TRACE("L" + std::to_string(row.length) + " K" + std::to_string(row.width) + (row.mask ? " mask" : "") +
                   (row.reverse ? " reverse" : "") + (row.cu_seqlens.empty() ? "" : " packed"));
      const ConvArguments p = make_arguments(row);
      expect_close(run(here::causal_conv1d, p), run(ops::causal_conv1d_composite, p), kFloat64Forward,
                   kFloat64Backward);
      row.type = at::kFloat;
      const ConvArguments single = make_arguments(row);
      expect_close(run(here::causal_conv1d, single), run(ops::causal_conv1d_composite, single), kFloat32Forward,
                   kFloat32Backward);
    }
  });
}

// The directional derivative along a random direction, by central differences.
TEST(CausalConv1d, FiniteDifferences) {
  for_each_device([&] {
    for (const ConvCase& row :
         {ConvCase{}, ConvCase{.silu = false, .reverse = true}, ConvCase{.length = 2, .mask = true},
          ConvCase{.batch = 1, .width = 6, .mask = true, .cu_seqlens = {0, 3, 3, 17}}}) {
      const ConvArguments p = make_arguments(row);
      const ConvResults r = run(here::causal_conv1d, p);
      const auto loss = [&](const ConvArguments& q) {
        const auto [y, window] = here::causal_conv1d(q.x, q.weight, optional(q.bias), q.options);
        return ((y * p.dy).sum() + (window * p.dwindow).sum()).item<double>();
      };
      const auto check = [&](const char* what, const auto& part, const at::Tensor& gradient) {
        constexpr double kStep = 1e-5;
        const at::Tensor direction = torch::randn(gradient.sizes(), at::kDouble);
        ConvArguments more = p, less = p;
        part(more) = part(more) + kStep * direction;
        part(less) = part(less) - kStep * direction;
        EXPECT_NEAR((loss(more) - loss(less)) / (2 * kStep), (direction * gradient).sum().item<double>(), 1e-7) << what;
      };
      check("x", [](ConvArguments& q) -> at::Tensor& { return q.x; }, r.dx);
      check("weight", [](ConvArguments& q) -> at::Tensor& { return q.weight; }, r.dweight);
      check("bias", [](ConvArguments& q) -> at::Tensor& { return q.bias; }, r.dbias);
      check(
          "initial_window", [](ConvArguments& q) -> at::Tensor& { return *q.options.initial_window; },
          r.dinitial_window);
    }
  });
}

// Any way of cutting a sequence gives the outputs and windows of the whole to the bit, and its gradients.
TEST(CausalConv1d, CutsEqualTheWhole) {
  for_each_device([&] {
    const std::vector<std::vector<int64_t>> ways = {
        {0, 17}, {17, 0}, {1, 16},       {2, 15},          {3, 14},
        {8, 9},  {16, 1}, {5, 0, 0, 12}, {3, 1, 1, 1, 11}, std::vector<int64_t>(17, 1)};
    for (const bool reverse : {false, true})
      for (const bool mask : {false, true})
        for (const int64_t width : {1, 2, 4, 6}) {
          const ConvArguments p = make_arguments({.width = width, .mask = mask, .reverse = reverse});
          const ConvResults whole = run(here::causal_conv1d, p);
          std::vector<std::vector<int64_t>> cuts = ways;
          cuts.push_back({width, 17 - width});  // one step more than the window holds, then several at once
          for (const std::vector<int64_t>& pieces : cuts) {
            const ConvResults cut = run(
                [&](const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                    ops::CausalConv1dOptions o) {
                  std::vector<at::Tensor> ys;
                  int64_t done = 0;
                  for (const int64_t piece : pieces) {
                    const int64_t first = reverse ? x.size(1) - done - piece : done;
                    if (mask) o.mask = p.options.mask->slice(1, first, first + piece);
                    auto [y, window] = here::causal_conv1d(x.slice(1, first, first + piece), weight, bias, o);
                    ys.insert(reverse ? ys.begin() : ys.end(), y);
                    o.initial_window = window;
                    done += piece;
                  }
                  return std::tuple(torch::cat(ys, 1), *o.initial_window);
                },
                p);
            expect_equal(cut.y, whole.y);
            expect_equal(cut.final_window, whole.final_window);
            expect_close(cut, whole, kFloat64Forward, kFloat64Backward);
          }
        }
  });
}

TEST(CausalConv1d, PackedEqualsSeparate) {
  for_each_device([&] {
    const std::vector<int64_t> cu = {0, 0, 1, 3, 12, 12, 17};
    for (const bool reverse : {false, true}) {
      const ConvArguments p = make_arguments({.batch = 1, .reverse = reverse, .cu_seqlens = cu});
      const ConvResults packed = run(here::causal_conv1d, p);
      const ConvResults separate = run(
          [&](const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
              const ops::CausalConv1dOptions& o) {
            std::vector<at::Tensor> ys, windows;
            for (size_t s = 0; s + 1 < cu.size(); ++s) {
              ops::CausalConv1dOptions one{.activation = o.activation, .reverse = o.reverse};
              const auto index = static_cast<int64_t>(s);
              one.initial_window = o.initial_window->slice(0, index, index + 1);
              auto [y, window] = here::causal_conv1d(x.slice(1, cu[s], cu[s + 1]), weight, bias, one);
              ys.push_back(y);
              windows.push_back(window);
            }
            return std::tuple(torch::cat(ys, 1), torch::cat(windows));
          },
          p);
      expect_equal(packed.y, separate.y);
      expect_equal(packed.final_window, separate.final_window);
      expect_close(packed, separate, kFloat64Forward, kFloat64Backward);
    }
  });
}

// Rows of ragged lengths, padded with NaN on either side, against each row alone.
TEST(CausalConv1d, MaskedPaddingEqualsUnpadded) {
  for_each_device([&] {
    const std::vector<std::pair<int64_t, int64_t>> kept = {{0, 17}, {6, 17}, {0, 9}, {4, 6}, {5, 5}};
    const auto rows = static_cast<int64_t>(kept.size());
    for (const bool reverse : {false, true}) {
      ConvArguments p = make_arguments({.batch = rows, .reverse = reverse});
      p.options.mask = torch::zeros({rows, 17}, at::kBool);
      for (int64_t b = 0; b < rows; ++b) p.options.mask->index({b}).slice(0, kept[b].first, kept[b].second).fill_(true);
      const at::Tensor padding = p.options.mask->logical_not().unsqueeze(2);
      p.x = p.x.masked_fill(padding, std::nan(""));
      const ConvResults masked = run(here::causal_conv1d, p);
      expect_equal(masked.y.masked_select(padding), torch::zeros({padding.sum().item<int64_t>() * 5}, at::kDouble));
      const ConvResults unpadded = run(
          [&](const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
              const ops::CausalConv1dOptions& o) {
            std::vector<at::Tensor> ys, windows;
            for (int64_t b = 0; b < rows; ++b) {
              ops::CausalConv1dOptions one{.activation = o.activation, .reverse = o.reverse};
              one.initial_window = o.initial_window->slice(0, b, b + 1);
              const auto [first, last] = kept[b];
              auto [y, window] = here::causal_conv1d(x.slice(0, b, b + 1).slice(1, first, last), weight, bias, one);
              ys.push_back(torch::constant_pad_nd(y, {0, 0, first, 17 - last}));
              windows.push_back(window);
            }
            return std::tuple(torch::cat(ys), torch::cat(windows));
          },
          p);
      expect_equal(masked.y, unpadded.y);
      expect_equal(masked.final_window, unpadded.final_window);
      expect_close(masked, unpadded, kFloat64Forward, kFloat64Backward);
    }
  });
}

// p in float32 or a narrow type; `as_given`: p's numbers, laid out in any way.
void expect_at_most_twice_the_composites_error(const ConvArguments& p, const ConvArguments& as_given) {
  ConvArguments wide = p;
  for (at::Tensor* t : {&wide.x, &wide.weight, &wide.dy, &wide.dwindow}) *t = t->to(at::kDouble);
  if (p.bias.defined()) wide.bias = p.bias.to(at::kDouble);
  if (p.options.initial_window) wide.options.initial_window = p.options.initial_window->to(at::kDouble);
  const ConvResults truth = run(ops::causal_conv1d_composite, wide), op = run(here::causal_conv1d, as_given),
                    composite = run(ops::causal_conv1d_composite, p);
  const auto check = [&](const char* what, at::Tensor ConvResults::*of) {
    if (!(truth.*of).defined()) return;
    const auto error = [&](const ConvResults& r) {
      return ((r.*of).to(at::kDouble) - truth.*of).abs().max().item<double>();
    };
    const double scale = (truth.*of).abs().max().item<double>();
    EXPECT_LE(error(op), 2 * error(composite) + kFloat32Forward.scaled * scale) << what << " " << p.x.scalar_type();
  };
  check("y", &ConvResults::y);
  check("final_window", &ConvResults::final_window);
  check("dx", &ConvResults::dx);
  check("dweight", &ConvResults::dweight);
  check("dbias", &ConvResults::dbias);
  check("dinitial_window", &ConvResults::dinitial_window);
}

TEST(CausalConv1d, LowPrecisionErrorAtMostTwiceTheComposites) {
  for_each_device([&] {
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf})
      for (const bool mask : {false, true}) {
        const ConvArguments p = make_arguments({.length = 129, .channels = 35, .mask = mask, .type = type});
        expect_at_most_twice_the_composites_error(p, p);
      }
  });
}

TEST(CausalConv1d, StepsSideBySide) {
  std::vector<ConvCase> rows;
  for (const int64_t length : {8, 16, 56, 64, 72, 256, 264, 1000, 2056})
    for (const int64_t width : {2, 3, 4}) rows.push_back({.length = length, .width = width});
  rows.push_back({.batch = 3, .length = 520, .channels = 33, .silu = false});
  rows.push_back({.length = 520, .bias = false, .window = false});
  rows.push_back({.batch = 128, .length = 1024, .channels = 64});  // pieces of several chunks
  for (const int64_t length : {1, 3, 70}) rows.push_back({.length = length});
  rows.push_back({.length = 64, .width = 6});
  rows.push_back({.length = 64, .mask = true});
  rows.push_back({.length = 64, .reverse = true});
  rows.push_back({.batch = 1, .length = 64, .cu_seqlens = {0, 16, 64}});
  const auto swapped = [](const at::Tensor& t) { return t.transpose(1, 2).contiguous().transpose(1, 2); };
  for_each_device([&] {
    for (ConvCase row : rows) {
      if (row.batch > 3 && current_device() == Device::kCpu) continue;  // for the sizes of a GPU
      SCOPED_TRACE("L" + std::to_string(row.length) + " K" + std::to_string(row.width));
      for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        row.type = type;
        const ConvArguments p = make_arguments(row);
        ConvArguments by_steps = p, mixed = p;
        by_steps.x = mixed.x = swapped(p.x);
        by_steps.dy = swapped(p.dy);
        expect_at_most_twice_the_composites_error(p, by_steps);
        const ConvResults a = run(here::causal_conv1d, by_steps), b = run(here::causal_conv1d, mixed);
        expect_equal(a.dx, b.dx);
        expect_equal(a.dweight, b.dweight);
        if (row.length > 1) {
          EXPECT_EQ(a.y.stride(1), 1);
          EXPECT_EQ(b.dx.stride(1), 1);
        }
      }
    }
  });
}

TEST(CausalConv1d, StridedAndBroadcastInputs) {
  for_each_device([&] {
    const ConvArguments p = make_arguments({});
    const auto expected = std::get<0>(here::causal_conv1d(p.x, p.weight, p.bias, p.options));
    const at::Tensor wide = torch::cat({torch::randn_like(p.x), p.x}, 2);
    ops::CausalConv1dOptions options = p.options;
    options.initial_window = p.options.initial_window->transpose(0, 2).contiguous().transpose(0, 2);
    expect_equal(std::get<0>(here::causal_conv1d(wide.chunk(2, 2)[1], p.weight, p.bias, options)), expected);
    expect_equal(std::get<0>(here::causal_conv1d(p.x.transpose(1, 2).contiguous().transpose(1, 2),
                                                 p.weight.t().contiguous().t(), p.bias, p.options)),
                 expected);
    const at::Tensor broadcast = p.x.slice(1, 0, 1).expand({2, 17, 5});
    expect_equal(std::get<0>(here::causal_conv1d(broadcast, p.weight, p.bias, p.options)),
                 std::get<0>(here::causal_conv1d(broadcast.contiguous(), p.weight, p.bias, p.options)));
  });
}

TEST(CausalConv1d, GradientOfOneOutputAlone) {
  for_each_device([&] {
    for (const bool through_y : {false, true}) {
      const ConvArguments p = make_arguments({});
      const auto gradient = [&](const auto& op) {
        const at::Tensor x = p.x.clone().requires_grad_();
        const auto [y, window] = op(x, p.weight, p.bias, p.options);
        return torch::autograd::grad({through_y ? y.sum() : window.sum()}, {x})[0];
      };
      expect_close("dx", gradient(ops::causal_conv1d), gradient(ops::causal_conv1d_composite), kFloat64Backward);
    }
  });
}

TEST(CausalConv1d, EmptyInputs) {
  for_each_device([&] {
    const ConvArguments none = make_arguments({.batch = 0});
    const ConvResults r = run(here::causal_conv1d, none);
    EXPECT_EQ(r.y.sizes(), (std::vector<int64_t>{0, 17, 5}));
    EXPECT_EQ(r.final_window.sizes(), (std::vector<int64_t>{0, 3, 5}));
    expect_equal(r.dweight, torch::zeros({5, 4}, at::kDouble));
    expect_equal(r.dbias, torch::zeros({5}, at::kDouble));

    const ConvArguments p = make_arguments({.length = 0});
    const auto [y, window] = here::causal_conv1d(p.x, p.weight, p.bias, p.options);
    EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 0, 5}));
    expect_equal(window, *p.options.initial_window);
    EXPECT_FALSE(window.is_alias_of(*p.options.initial_window));
    expect_equal(run(here::causal_conv1d, p).dinitial_window, p.dwindow);

    const ConvArguments no_sequence = make_arguments({.batch = 1, .length = 0, .cu_seqlens = {0}});
    EXPECT_EQ(run(here::causal_conv1d, no_sequence).final_window.size(0), 0);
  });
}

TEST(CausalConv1d, MetaTensorsHaveTheShapesOfTheResult) {
  const ConvArguments p = make_arguments({.batch = 1, .cu_seqlens = {0, 4, 17}});
  const auto meta = [](const at::Tensor& t) { return t.to(at::kMeta); };
  const auto [y, window] =
      here::causal_conv1d(meta(p.x.to(at::kBFloat16)), meta(p.weight.to(at::kFloat)), meta(p.bias.to(at::kFloat)),
                          {.activation = "silu", .cu_seqlens = p.options.cu_seqlens});
  EXPECT_TRUE(y.is_meta());
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(y.sizes(), p.x.sizes());
  EXPECT_EQ(window.scalar_type(), at::kFloat);
  EXPECT_EQ(window.sizes(), (std::vector<int64_t>{2, 3, 5}));
}

TEST(CausalConv1d, SecondDerivativeIsRefused) {
  const ConvArguments p = make_arguments({});
  const at::Tensor x = p.x.clone().requires_grad_();
  const at::Tensor y = std::get<0>(here::causal_conv1d(x, p.weight, p.bias, p.options));
  const at::Tensor first = torch::autograd::grad({y.sum()}, {x}, {}, true, true)[0];
  try {
    first.sum().backward();
    FAIL() << "no error";
  } catch (const std::exception& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("causal_conv1d: has no second derivative"));
  }
}

}  // namespace
}  // namespace adder::tests
