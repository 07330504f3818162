#include "adder/kernels/causal_conv1d.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "adder/kernels/causal_conv1d_ref.h"
#include "adder/kernels/targets.h"
#include "hwy/highway.h"
#include "tests/tolerances.h"

namespace adder::kernels {
namespace {

enum class Layout { kContiguous, kPadded, kTransposed, kBackwards, kBroadcastBatch, kBroadcastChannel };

struct Row {
  std::string name;
  int64_t batch = 2, length = 65, channels = 19, width = 4;
  bool silu = true, bias = true, window = true, mask = false, reverse = false;
  std::vector<int64_t> cu_seqlens = {};
  Layout layout = Layout::kContiguous;
  int64_t threads = 0;

  int64_t sequences() const { return cu_seqlens.empty() ? batch : static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// A (B, L, D) tensor in some layout, with unused room between its elements where the layout has any.
template <typename T>
struct Buffer {
  std::vector<T> data;
  View3<T> view;

  Buffer(const Row& row, Layout layout, double fill) {
    const int64_t B = row.batch, L = row.length, D = row.channels;
    int64_t origin = 0, size = B * L * D;
    switch (layout) {
      case Layout::kContiguous:
        view = {nullptr, L * D, D, 1};
        break;
      case Layout::kPadded:
        view = {nullptr, (L + 2) * (D + 3), D + 3, 1}, size = B * (L + 2) * (D + 3);
        break;
      case Layout::kTransposed:
        view = {nullptr, L * D, 1, L};
        break;
      case Layout::kBackwards:
        view = {nullptr, L * D, -D, -1}, origin = L * D > 0 ? L * D - 1 : 0;
        break;
      case Layout::kBroadcastBatch:
        view = {nullptr, 0, D, 1};
        break;
      case Layout::kBroadcastChannel:
        view = {nullptr, L, 1, 0};
        break;
    }
    data.assign(size, from_float<T>(static_cast<Accumulator<T>>(fill)));
    view.data = data.data() + origin;
  }
  View3<const T> read() const { return {view.data, view.b, view.l, view.d}; }
  T& at(int64_t b, int64_t t, int64_t d) { return view.data[b * view.b + t * view.l + d * view.d]; }
};

template <typename T>
std::vector<double> dense(const Row& row, Buffer<T>& from) {
  std::vector<double> values;
  for (int64_t b = 0; b < row.batch; ++b)
    for (int64_t t = 0; t < row.length; ++t)
      for (int64_t d = 0; d < row.channels; ++d) values.push_back(to_float(from.at(b, t, d)));
  return values;
}

template <typename R>
std::vector<double> widen(const std::vector<R>& from) {
  return {from.begin(), from.end()};
}

struct Results {
  std::vector<double> y, final_window, dx, dweight, dbias, dinitial_window;
};

// Inputs that depend on the row alone, rounded to T.
template <typename T>
struct Inputs {
  using R = Accumulator<T>;
  Buffer<T> x, dy;
  std::vector<R> weight, bias, window, dwindow;
  std::unique_ptr<bool[]> mask;

  explicit Inputs(const Row& row) : x(row, row.layout, 0), dy(row, row.layout, 0) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto draw = [&](int64_t count) {
      std::vector<R> values(count);
      for (R& value : values) value = normal(random);
      return values;
    };
    for (Buffer<T>* buffer : {&x, &dy})
      for (T& value : buffer->data) value = from_float<T>(normal(random));
    weight = draw(row.channels * row.width);
    bias = draw(row.channels);
    window = draw(row.sequences() * (row.width - 1) * row.channels);
    dwindow = draw(static_cast<int64_t>(window.size()));
    mask = std::make_unique<bool[]>(row.batch * row.length + 1);
    for (int64_t i = 0; i < row.batch * row.length; ++i) mask[i] = random() % 3 != 0;
    // What a masked step holds must not matter.
    if (row.mask && row.layout != Layout::kBroadcastBatch && row.layout != Layout::kBroadcastChannel)
      for (int64_t b = 0; b < row.batch; ++b)
        for (int64_t t = 0; t < row.length; ++t)
          for (int64_t d = 0; d < row.channels && !mask[b * row.length + t]; ++d)
            x.at(b, t, d) = dy.at(b, t, d) = from_float<T>(std::numeric_limits<float>::quiet_NaN());
  }

  void fill(const Row& row, CausalConv1dInputs<T>& p) const {
    p.layout = {row.batch, row.length, row.sequences(), row.cu_seqlens.empty() ? nullptr : row.cu_seqlens.data(),
                {},        row.reverse};
    if (row.mask) p.layout.mask = {mask.get(), row.length, 1};
    p.channels = row.channels;
    p.width = row.width;
    p.activation = row.silu ? ConvActivation::kSilu : ConvActivation::kNone;
    p.x = x.read();
    p.weight = {weight.data(), row.width, 1};
    if (row.bias) p.bias = {bias.data(), 1};
    if (row.window) p.initial_window = window.data();
    p.threads = row.threads;
  }
};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Layout output_layout(Layout layout) {
  return layout == Layout::kBroadcastBatch || layout == Layout::kBroadcastChannel ? Layout::kContiguous : layout;
}

// Forward and Backward are the kernel's entry points or the reference's.
template <typename T, typename Forward, typename Backward>
Results run(const Row& row, const Inputs<T>& inputs, const Forward& forward, const Backward& backward,
            int64_t workspace_bytes) {
  using R = Accumulator<T>;
  const Layout layout = output_layout(row.layout);
  const auto nans = [](int64_t count) { return std::vector<R>(count, static_cast<R>(kNan)); };
  const auto windows = static_cast<int64_t>(inputs.window.size());
  Buffer<T> y(row, layout, kNan), dx(row, layout, kNan);
  std::vector<R> final_window = nans(windows), dweight = nans(row.channels * row.width), dbias = nans(row.channels),
                 dinitial = nans(windows), workspace = nans(workspace_bytes / static_cast<int64_t>(sizeof(R)) + 16);
  CausalConv1dForward<T> f;
  inputs.fill(row, f);
  f.y = y.view;
  f.final_window = final_window.data();
  forward(f);
  CausalConv1dBackward<T> g;
  inputs.fill(row, g);
  g.dy = inputs.dy.read();
  g.dfinal_window = row.window ? inputs.dwindow.data() : nullptr;
  g.dx = dx.view;
  g.dweight = dweight.data();
  if (row.bias) g.dbias = dbias.data();
  if (row.window) g.dinitial_window = dinitial.data();
  g.workspace = workspace.data();
  backward(g);
  if (layout == Layout::kPadded) {
    int64_t untouched = 0;
    for (T value : y.data) untouched += std::isnan(to_float(value)) ? 1 : 0;
    EXPECT_EQ(untouched, static_cast<int64_t>(y.data.size()) - row.batch * row.length * row.channels);
  }
  if (!row.bias) dbias.clear();
  if (!row.window) dinitial.clear();
  return {dense(row, y), widen(final_window), dense(row, dx), widen(dweight), widen(dbias), widen(dinitial)};
}

template <typename T>
Results run_kernel(const Row& row, const Inputs<T>& inputs) {
  CausalConv1dInputs<T> p;
  inputs.fill(row, p);
  return run(row, inputs, cpu::causal_conv1d_forward<T>, cpu::causal_conv1d_backward<T>,
             causal_conv1d_backward_workspace_bytes(p));
}

// The reference on the same values, after their rounding to T.
template <typename T>
Results run_reference(const Row& row) {
  const Inputs<T> rounded(row);
  Inputs<double> inputs(row);
  for (size_t i = 0; i < inputs.x.data.size(); ++i) {
    inputs.x.data[i] = to_float(rounded.x.data[i]);
    inputs.dy.data[i] = to_float(rounded.dy.data[i]);
  }
  return run(row, inputs, ref::causal_conv1d_forward, ref::causal_conv1d_backward, 0);
}

void expect_near(const char* what, const std::vector<double>& got, const std::vector<double>& expected,
                 tests::Tolerance tolerance) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double scale = 0;
  for (const double value : expected) scale = std::max(scale, std::fabs(value));
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_TRUE(tests::near(got[i], expected[i], scale, tolerance))
        << what << "[" << i << "]: got " << got[i] << ", expected " << expected[i];
}

template <typename T>
void expect_near(const Results& got, const Results& expected) {
  constexpr bool kDouble = std::is_same_v<T, double>;
  constexpr tests::Tolerance kForward = kDouble ? tests::kFloat64Forward : tests::kFloat32Forward;
  constexpr tests::Tolerance kBackward = kDouble ? tests::kFloat64Backward : tests::kFloat32Backward;
  constexpr bool kWide = kDouble || std::is_same_v<T, float>;
  constexpr tests::Tolerance kNarrow = std::is_same_v<T, bfloat16> ? tests::kBFloat16 : tests::kFloat16;
  expect_near("y", got.y, expected.y, kWide ? kForward : kNarrow);
  expect_near("final_window", got.final_window, expected.final_window, kForward);
  expect_near("dx", got.dx, expected.dx, kWide ? kBackward : kNarrow);
  expect_near("dweight", got.dweight, expected.dweight, kBackward);
  expect_near("dbias", got.dbias, expected.dbias, kBackward);
  expect_near("dinitial_window", got.dinitial_window, expected.dinitial_window, kBackward);
}

template <typename T>
void compare(const Row& row) {
  expect_near<T>(run_kernel(row, Inputs<T>(row)), run_reference<T>(row));
}

void compare_all(const Row& row) {
  SCOPED_TRACE(row.name + " B" + std::to_string(row.batch) + " L" + std::to_string(row.length) + " D" +
               std::to_string(row.channels) + " K" + std::to_string(row.width));
  compare<float>(row);
  compare<double>(row);
  compare<bfloat16>(row);
  compare<float16>(row);
}

TEST(CausalConv1d, LengthsAndWidths) {
  for (const int64_t length : {0, 1, 2, 3, 63, 64, 65, 129})
    for (const int64_t width : {1, 2, 3, 4, 5, 6, 9}) compare_all({.name = "base", .length = length, .width = width});
}

TEST(CausalConv1d, OneThingChanged) {
  compare_all({.name = "no activation", .silu = false});
  compare_all({.name = "no bias", .bias = false});
  compare_all({.name = "no window", .window = false});
  compare_all({.name = "no window, wide", .width = 9, .window = false});
  compare_all({.name = "reverse", .reverse = true});
  compare_all({.name = "one row", .batch = 1});
  compare_all({.name = "many rows", .batch = 200, .length = 1});
  compare_all({.name = "no rows", .batch = 0});
  compare_all({.name = "no channels", .channels = 0});
  compare_all({.name = "several blocks", .channels = 1529});
  compare_all({.name = "whole vectors", .channels = 64});
  compare_all({.name = "several pieces", .batch = 1, .length = 2049});
  compare_all({.name = "several slabs", .batch = 3, .length = 2049, .channels = 5, .width = 5});
  compare_all({.name = "more slabs", .batch = 5, .length = 4097, .channels = 2});
  compare_all({.name = "wider than a chunk", .length = 40, .width = 37});
  compare_all({.name = "wider than the sequence", .length = 5, .width = 37, .reverse = true});
  compare_all({.name = "wider than a piece", .length = 700, .channels = 3, .width = 130});
}

TEST(CausalConv1d, Masked) {
  for (const int64_t width : {1, 2, 4, 6}) {
    compare_all({.name = "mask", .width = width, .mask = true});
    compare_all({.name = "short", .length = 3, .width = width, .mask = true});
    compare_all({.name = "pieces", .batch = 1, .length = 2049, .channels = 3, .width = width, .mask = true});
    compare_all({.name = "reverse", .width = width, .mask = true, .reverse = true});
    compare_all(
        {.name = "packed", .batch = 1, .width = width, .mask = true, .cu_seqlens = {0, 0, 1, 5, 5, 40, 65, 65}});
  }
}

TEST(CausalConv1d, Packed) {
  for (const bool reverse : {false, true})
    for (const int64_t width : {1, 3, 4, 7}) {
      const Row row{
          .name = "packed", .batch = 1, .width = width, .reverse = reverse, .cu_seqlens = {0, 0, 1, 3, 3, 40, 64, 65}};
      compare_all(row);
      Row none = row;
      none.length = 0;
      none.cu_seqlens = {0, 0, 0};
      compare_all(none);
      none.cu_seqlens = {0};  // no sequence at all
      compare_all(none);
    }
}

TEST(CausalConv1d, Strides) {
  for (const Layout layout :
       {Layout::kPadded, Layout::kTransposed, Layout::kBackwards, Layout::kBroadcastBatch, Layout::kBroadcastChannel})
    for (const bool mask : {false, true})
      compare_all({.name = "layout " + std::to_string(static_cast<int>(layout)), .mask = mask, .layout = layout});
}

TEST(CausalConv1d, MaskedRunsLongerThanPieces) {
  Row row{.name = "long masks", .batch = 1, .length = 1500, .channels = 3, .mask = true};
  Inputs<float> inputs(row);
  const auto masked_between = [](int64_t first, int64_t last) {
    return [=](int64_t t) { return t < first || t >= last; };
  };
  const std::vector<std::function<bool(int64_t)>> masks = {masked_between(0, 700), masked_between(400, 1500),
                                                           masked_between(3, 1497), masked_between(0, 1500),
                                                           [](int64_t t) { return t % 100 == 7; }};
  for (const auto& mask : masks) {
    for (int64_t t = 0; t < row.length; ++t) inputs.mask[t] = mask(t);
    for (float& x : inputs.x.data) x = std::isnan(x) ? 1 : x;
    for (float& dy : inputs.dy.data) dy = std::isnan(dy) ? 1 : dy;
    Inputs<double> wide(row);
    wide.x.data.assign(inputs.x.data.begin(), inputs.x.data.end());
    wide.dy.data.assign(inputs.dy.data.begin(), inputs.dy.data.end());
    std::copy(inputs.mask.get(), inputs.mask.get() + row.length, wide.mask.get());
    const Results got = run_kernel(row, inputs);
    const Results expected = run(row, wide, ref::causal_conv1d_forward, ref::causal_conv1d_backward, 0);
    expect_near<float>(got, expected);
  }
}

// Every instruction set that this processor has.
TEST(CausalConv1d, InstructionSets) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    for (const int64_t width : {2, 3, 4, 6})
      for (const Row& row :
           {Row{.name = "silu", .width = width, .mask = true}, Row{.name = "none", .width = width, .silu = false}}) {
        compare<float>(row);
        compare<double>(row);
        compare<bfloat16>(row);
        compare<float16>(row);
      }
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

void expect_same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(double)), 0);
}

TEST(CausalConv1d, SameBitsOnEveryRunAndForAnyThreads) {
  for (Row row :
       {Row{.name = "rows", .batch = 3, .length = 700, .channels = 1529, .mask = true},
        Row{.name = "packed", .batch = 1, .length = 900, .channels = 300, .cu_seqlens = {0, 10, 10, 500, 900}}}) {
    row.threads = 1;
    const Results once = run_kernel(row, Inputs<float>(row));
    for (const int64_t threads : {1, 2, 3}) {
      row.threads = threads;
      const Results again = run_kernel(row, Inputs<float>(row));
      expect_same_bits(once.y, again.y);
      expect_same_bits(once.final_window, again.final_window);
      expect_same_bits(once.dx, again.dx);
      expect_same_bits(once.dweight, again.dweight);
      expect_same_bits(once.dbias, again.dbias);
      expect_same_bits(once.dinitial_window, again.dinitial_window);
    }
  }
}

TEST(CausalConv1d, MoreChannelsThanSixteenBitsCount) {
  const Row row{.name = "wide", .batch = 1, .length = 3, .channels = 65539};
  compare<float>(row);
}

// Rows more than 2^31 elements apart, of which the system keeps only the pages touched.
TEST(CausalConv1d, OffsetsOfSixtyFourBits) {
  const Row row{.name = "far", .batch = 1, .length = 3, .channels = 5};
  const int64_t stride = (int64_t{1} << 31) + 5;
  const size_t bytes = static_cast<size_t>(2 * stride + row.channels) * sizeof(bfloat16);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no address space of " << bytes << " bytes";
  Inputs<bfloat16> inputs(row);
  const Results expected = run_kernel(row, inputs);
  const View3<bfloat16> near = inputs.x.view, far{static_cast<bfloat16*>(memory), 0, stride, 1};
  for (int64_t t = 0; t < row.length; ++t)
    for (int64_t d = 0; d < row.channels; ++d) far.data[t * far.l + d] = near.data[t * near.l + d];
  inputs.x.view = far;
  const Results got = run_kernel(row, inputs);
  expect_same_bits(got.y, expected.y);
  expect_same_bits(got.dx, expected.dx);
  expect_same_bits(got.dweight, expected.dweight);
  munmap(memory, bytes);
}

// NaN and infinities come out where the formula puts them, and nowhere else.
TEST(CausalConv1d, NotFinite) {
  const Row row{.name = "nan", .batch = 1, .length = 40, .channels = 3};
  Inputs<float> inputs(row);
  inputs.x.at(0, 10, 1) = std::numeric_limits<float>::quiet_NaN();
  inputs.x.at(0, 20, 2) = std::numeric_limits<float>::infinity();
  const Results got = run_kernel(row, inputs);
  for (int64_t t = 0; t < row.length; ++t) {
    EXPECT_EQ(std::isnan(got.y[t * 3 + 1]), t >= 10 && t < 14) << t;
    EXPECT_EQ(std::isnan(got.dx[t * 3 + 1]), t >= 7 && t < 14) << t;
    EXPECT_TRUE(std::isfinite(got.y[t * 3])) << t;
    EXPECT_TRUE(std::isfinite(got.y[t * 3 + 2]) || (t >= 20 && t < 24)) << t;
  }
  EXPECT_TRUE(std::isnan(got.dweight[4]));
  EXPECT_TRUE(std::isfinite(got.dweight[0]));
}

}  // namespace
}  // namespace adder::kernels
