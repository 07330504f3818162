#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/causal_conv1d_ref.h"
#include "tests/kernels/compare.h"
#ifdef ADDER_CUDA
#include "adder/kernels/causal_conv1d_cuda.h"
#endif

// One problem of the causal convolution, run by the kernel and by the reference.
namespace adder::tests {

enum class ConvLayout { kContiguous, kPadded, kTransposed, kBackwards, kBroadcastBatch, kBroadcastChannel };

struct ConvShape {
  std::string name;
  int64_t batch = 2, length = 65, channels = 19, width = 4;
  bool silu = true, bias = true, window = true, mask = false, reverse = false;
  std::vector<int64_t> cu_seqlens = {};
  ConvLayout layout = ConvLayout::kContiguous;
  int64_t threads = 0;

  int64_t sequences() const { return cu_seqlens.empty() ? batch : static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

// A (B, L, D) tensor in some layout, with unused room between its elements where the layout has any.
template <typename T>
struct ConvBuffer {
  Buffer<T> data;
  kernels::View3<T> view;

  ConvBuffer(const ConvShape& row, ConvLayout layout, double fill) {
    const int64_t B = row.batch, L = row.length, D = row.channels;
    int64_t origin = 0, size = B * L * D;
    switch (layout) {
      case ConvLayout::kContiguous:
        view = {nullptr, L * D, D, 1};
        break;
      case ConvLayout::kPadded:
        view = {nullptr, (L + 2) * (D + 3), D + 3, 1}, size = B * (L + 2) * (D + 3);
        break;
      case ConvLayout::kTransposed:
        view = {nullptr, L * D, 1, L};
        break;
      case ConvLayout::kBackwards:
        view = {nullptr, L * D, -D, -1}, origin = L * D > 0 ? L * D - 1 : 0;
        break;
      case ConvLayout::kBroadcastBatch:
        view = {nullptr, 0, D, 1};
        break;
      case ConvLayout::kBroadcastChannel:
        view = {nullptr, L, 1, 0};
        break;
    }
    data.assign(size, kernels::from_float<T>(static_cast<kernels::Accumulator<T>>(fill)));
    view.data = data.data() + origin;
  }
  kernels::View3<const T> read() const { return {view.data, view.b, view.l, view.d}; }
  T& at(int64_t b, int64_t t, int64_t d) { return view.data[b * view.b + t * view.l + d * view.d]; }
};

template <typename T>
std::vector<double> dense(const ConvShape& row, ConvBuffer<T>& from) {
  std::vector<double> values;
  for (int64_t b = 0; b < row.batch; ++b)
    for (int64_t t = 0; t < row.length; ++t)
      for (int64_t d = 0; d < row.channels; ++d) values.push_back(kernels::to_float(from.at(b, t, d)));
  return values;
}

struct ConvResults {
  std::vector<double> y, final_window, dx, dweight, dbias, dinitial_window;
};

// Inputs that depend on the row alone, rounded to T.
template <typename T>
struct ConvInputs {
  using R = kernels::Accumulator<T>;
  ConvBuffer<T> x, dy;
  Buffer<R> weight, bias, window, dwindow;
  Buffer<char> mask;
  Buffer<int64_t> cu_seqlens;

  explicit ConvInputs(const ConvShape& row) : x(row, row.layout, 0), dy(row, row.layout, 0) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto draw = [&](int64_t count) {
      Buffer<R> values(count);
      for (R& value : values) value = normal(random);
      return values;
    };
    for (ConvBuffer<T>* buffer : {&x, &dy})
      for (T& value : buffer->data) value = kernels::from_float<T>(normal(random));
    weight = draw(row.channels * row.width);
    bias = draw(row.channels);
    window = draw(row.sequences() * (row.width - 1) * row.channels);
    dwindow = draw(static_cast<int64_t>(window.size()));
    cu_seqlens.assign(row.cu_seqlens.begin(), row.cu_seqlens.end());
    mask.resize(row.batch * row.length + 1);
    for (int64_t i = 0; i < row.batch * row.length; ++i) mask[i] = random() % 3 != 0;
    // What a masked step holds must not matter.
    if (row.mask && row.layout != ConvLayout::kBroadcastBatch && row.layout != ConvLayout::kBroadcastChannel)
      for (int64_t b = 0; b < row.batch; ++b)
        for (int64_t t = 0; t < row.length; ++t)
          for (int64_t d = 0; d < row.channels && !mask[b * row.length + t]; ++d)
            x.at(b, t, d) = dy.at(b, t, d) = kernels::from_float<T>(std::numeric_limits<float>::quiet_NaN());
  }

  void fill(const ConvShape& row, kernels::CausalConv1dInputs<T>& p) const {
    p.layout = {row.batch, row.length, row.sequences(), cu_seqlens.empty() ? nullptr : cu_seqlens.data(),
                {},        row.reverse};
    if (row.mask) p.layout.mask = {reinterpret_cast<const bool*>(mask.data()), row.length, 1};
    p.channels = row.channels;
    p.width = row.width;
    p.activation = row.silu ? kernels::ConvActivation::kSilu : kernels::ConvActivation::kNone;
    p.x = x.read();
    p.weight = {weight.data(), row.width, 1};
    if (row.bias) p.bias = {bias.data(), 1};
    if (row.window) p.initial_window = window.data();
    p.threads = row.threads;
  }
};

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

inline ConvLayout output_layout(ConvLayout layout) {
  return layout == ConvLayout::kBroadcastBatch || layout == ConvLayout::kBroadcastChannel ? ConvLayout::kContiguous
                                                                                          : layout;
}

// Forward and Backward are the kernel's entry points or the reference's.
template <typename T, typename Forward, typename Backward>
ConvResults run(const ConvShape& row, const ConvInputs<T>& inputs, const Forward& forward, const Backward& backward,
                int64_t workspace_bytes) {
  using R = kernels::Accumulator<T>;
  const ConvLayout layout = output_layout(row.layout);
  const auto nans = [](int64_t count) { return Buffer<R>(count, static_cast<R>(kNan)); };
  const auto windows = static_cast<int64_t>(inputs.window.size());
  ConvBuffer<T> y(row, layout, kNan), dx(row, layout, kNan);
  Buffer<R> final_window = nans(windows), dweight = nans(row.channels * row.width), dbias = nans(row.channels),
            dinitial = nans(windows), workspace = nans(workspace_bytes / static_cast<int64_t>(sizeof(R)) + 16);
  kernels::CausalConv1dForward<T> f;
  inputs.fill(row, f);
  f.y = y.view;
  f.final_window = final_window.data();
  forward(f);
  kernels::CausalConv1dBackward<T> g;
  inputs.fill(row, g);
  g.dy = inputs.dy.read();
  g.dfinal_window = row.window ? inputs.dwindow.data() : nullptr;
  g.dx = dx.view;
  g.dweight = dweight.data();
  if (row.bias) g.dbias = dbias.data();
  if (row.window) g.dinitial_window = dinitial.data();
  g.workspace = workspace.data();
  backward(g);
  if (layout == ConvLayout::kPadded) {
    int64_t untouched = 0;
    for (T value : y.data) untouched += std::isnan(kernels::to_float(value)) ? 1 : 0;
    EXPECT_EQ(untouched, static_cast<int64_t>(y.data.size()) - row.batch * row.length * row.channels);
  }
  if (!row.bias) dbias.clear();
  if (!row.window) dinitial.clear();
  return {dense(row, y), doubles(final_window), dense(row, dx), doubles(dweight), doubles(dbias), doubles(dinitial)};
}

template <typename T>
ConvResults run_kernel(const ConvShape& row, const ConvInputs<T>& inputs) {
  kernels::CausalConv1dInputs<T> p;
  inputs.fill(row, p);
  int64_t bytes = kernels::cpu::causal_conv1d_backward_workspace_bytes(p);
#ifdef ADDER_CUDA
  if (current_device() == Device::kCuda) bytes = kernels::cuda::causal_conv1d_backward_workspace_bytes(p);
#endif
  const auto forward = [](const kernels::CausalConv1dForward<T>& params) {
    run_kernel_on_device(params, kernels::cpu::causal_conv1d_forward<T>,
                         ADDER_ON_CUDA(kernels::cuda::causal_conv1d_forward(on_cuda, nullptr)));
  };
  const auto backward = [](const kernels::CausalConv1dBackward<T>& params) {
    run_kernel_on_device(params, kernels::cpu::causal_conv1d_backward<T>,
                         ADDER_ON_CUDA(kernels::cuda::causal_conv1d_backward(on_cuda, nullptr)));
  };
  return run(row, inputs, forward, backward, bytes);
}

// The reference on the same values, after their rounding to T.
template <typename T>
ConvResults run_reference(const ConvShape& row) {
  const ConvInputs<T> rounded(row);
  ConvInputs<double> inputs(row);
  for (size_t i = 0; i < inputs.x.data.size(); ++i) {
    inputs.x.data[i] = kernels::to_float(rounded.x.data[i]);
    inputs.dy.data[i] = kernels::to_float(rounded.dy.data[i]);
  }
  return run(row, inputs, kernels::ref::causal_conv1d_forward, kernels::ref::causal_conv1d_backward, 0);
}

template <typename T>
void expect_near(const ConvResults& got, const ConvResults& expected) {
  constexpr bool kDouble = std::is_same_v<T, double>;
  constexpr Tolerance kForward = kDouble ? kFloat64Forward : kFloat32Forward;
  constexpr Tolerance kBackward = kDouble ? kFloat64Backward : kFloat32Backward;
  expect_near("y", got.y, expected.y, forward_tolerance<T>());
  expect_near("final_window", got.final_window, expected.final_window, kForward);
  expect_near("dx", got.dx, expected.dx, backward_tolerance<T>());
  expect_near("dweight", got.dweight, expected.dweight, kBackward);
  expect_near("dbias", got.dbias, expected.dbias, kBackward);
  expect_near("dinitial_window", got.dinitial_window, expected.dinitial_window, kBackward);
}

template <typename T>
void compare(const ConvShape& row) {
  expect_near<T>(run_kernel(row, ConvInputs<T>(row)), run_reference<T>(row));
}

inline void compare_all(const ConvShape& row) {
  SCOPED_TRACE(row.name + " B" + std::to_string(row.batch) + " L" + std::to_string(row.length) + " D" +
               std::to_string(row.channels) + " K" + std::to_string(row.width));
  compare<float>(row);
  compare<double>(row);
  compare<kernels::bfloat16>(row);
  compare<kernels::float16>(row);
}

}  // namespace adder::tests
