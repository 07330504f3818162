#include "adder/kernels/add_norm.h"

#include <gtest/gtest.h>

#include "adder/kernels/add_norm_ref.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/every_target.h"
#ifdef ADDER_CUDA
#include "adder/kernels/add_norm_cuda.h"
#endif

namespace adder::tests {
namespace {

using kernels::bfloat16;
using kernels::float16;
using kernels::NormKind;

template <typename T, typename Out>
void run_forward(const kernels::AddNormForward<T, Out>& params) {
  run_kernel_on_device(params, kernels::cpu::add_norm_forward<T, Out>,
                       ADDER_ON_CUDA(kernels::cuda::add_norm_forward(on_cuda, nullptr)));
}
template <typename T, typename Out>
void run_backward(kernels::AddNormBackward<T, Out> params, Buffer<std::byte>& workspace) {
  int64_t bytes = kernels::cpu::add_norm_backward_workspace_bytes(params);
#ifdef ADDER_CUDA
  if (current_device() == Device::kCuda) bytes = kernels::cuda::add_norm_backward_workspace_bytes(params);
#endif
  workspace.assign(bytes, std::byte{0xFF});
  params.workspace = workspace.data();
  run_kernel_on_device(params, kernels::cpu::add_norm_backward<T, Out>,
                       ADDER_ON_CUDA(kernels::cuda::add_norm_backward(on_cuda, nullptr)));
}

struct NormShape {
  int64_t rows = 5, width = 70;
  NormKind kind = NormKind::kRms;
  bool residual = true, bias = true, dresidual_out = true;
};

// Inputs and NaN-filled outputs of one call, forward and backward.
template <typename T, typename Out>
struct NormProblem {
  using R = kernels::Accumulator<T>;
  NormShape s;
  Buffer<T> x, dx;
  Buffer<R> residual, weight, bias, dresidual_out, residual_out, rstd, mean, dresidual, dweight, dbias;
  Buffer<Out> y, dy;
  Buffer<std::byte> workspace;

  explicit NormProblem(const NormShape& shape) : s(shape) {
    const int64_t size = s.rows * s.width;
    x = normal_values<T>(size, 1, 1);
    residual = normal_values<R>(size, 2, 2);
    weight = normal_values<R>(s.width, 1, 3);
    bias = normal_values<R>(s.width, 1, 4);
    dresidual_out = normal_values<R>(size, 1, 5);
    dy = normal_values<Out>(size, 1, 6);
    y = nan_values<Out>(size);
    dx = nan_values<T>(size);
    residual_out = dresidual = nan_values<R>(size);
    rstd = mean = nan_values<R>(s.rows);
    dweight = dbias = nan_values<R>(s.width);
  }

  void forward(int64_t threads = 2) {
    kernels::AddNormForward<T, Out> p;
    p.rows = s.rows;
    p.width = s.width;
    p.kind = s.kind;
    p.x = x.data();
    p.residual = s.residual ? residual.data() : nullptr;
    p.weight = weight.data();
    p.bias = s.bias ? bias.data() : nullptr;
    p.y = y.data();
    p.residual_out = residual_out.data();
    p.rstd = rstd.data();
    p.mean = s.kind == NormKind::kLayer ? mean.data() : nullptr;
    p.threads = threads;
    run_forward(p);
  }

  void backward(int64_t threads = 2) {
    kernels::AddNormBackward<T, Out> p;
    p.rows = s.rows;
    p.width = s.width;
    p.kind = s.kind;
    p.dy = dy.data();
    p.dresidual_out = s.dresidual_out ? dresidual_out.data() : nullptr;
    p.residual_out = residual_out.data();
    p.rstd = rstd.data();
    p.mean = s.kind == NormKind::kLayer ? mean.data() : nullptr;
    p.weight = weight.data();
    p.dx = dx.data();
    p.dresidual = s.residual ? dresidual.data() : nullptr;
    p.dweight = dweight.data();
    p.dbias = s.bias ? dbias.data() : nullptr;
    p.threads = threads;
    run_backward(p, workspace);
  }

  kernels::reference::AddNormArguments arguments() const {
    return {s.rows,          s.width,
            s.kind,          1e-5,
            doubles(x),      s.residual ? doubles(residual) : std::vector<double>(),
            doubles(weight), s.bias ? doubles(bias) : std::vector<double>()};
  }
};

template <typename T, typename Out>
void compare(const NormShape& shape) {
  using R = kernels::Accumulator<T>;
  NormProblem<T, Out> problem(shape);
  problem.forward();
  const auto expected = kernels::reference::add_norm(problem.arguments());
  expect_near("residual_out", problem.residual_out, expected.residual_out, forward_tolerance<R>());
  expect_near("y", problem.y, expected.y, forward_tolerance<Out>());

  problem.backward();
  const auto grads = kernels::reference::add_norm_backward(
      problem.arguments(), doubles(problem.dy),
      shape.dresidual_out ? doubles(problem.dresidual_out) : std::vector<double>());
  expect_near("dx", problem.dx, grads.dresidual, backward_tolerance<T>());
  if (shape.residual) expect_near("dresidual", problem.dresidual, grads.dresidual, backward_tolerance<R>());
  expect_near("dweight", problem.dweight, grads.dweight, backward_tolerance<R>());
  if (shape.bias) expect_near("dbias", problem.dbias, grads.dbias, backward_tolerance<R>());
}

// The base row, then rows that change one thing.
std::vector<std::pair<std::string, NormShape>> cases() {
  std::vector<std::pair<std::string, NormShape>> rows;
  for (const bool layer : {false, true}) {
    const std::string kind = layer ? "layer" : "rms";
    const auto row = [&](const std::string& name, auto change) {
      NormShape s;
      s.kind = layer ? NormKind::kLayer : NormKind::kRms;
      change(s);
      rows.emplace_back(kind + "_" + name, s);
    };
    row("base", [](auto&) {});
    if (!layer) row("D1", [](auto& s) { s.width = 1; });
    for (const int64_t width : {2, 15, 16, 17, 33, 768, 2049})
      row("D" + std::to_string(width), [=](auto& s) { s.width = width; });
    for (const int64_t count : {0, 1, 16, 17, 1025, 2100})
      row("rows" + std::to_string(count), [=](auto& s) { s.rows = count; });
    row("no_residual", [](auto& s) { s.residual = false; });
    row("no_bias", [](auto& s) { s.bias = false; });
    row("no_dresidual_out", [](auto& s) { s.dresidual_out = false; });
  }
  return rows;
}

class AddNorm : public testing::TestWithParam<std::pair<std::string, NormShape>> {};

TEST_P(AddNorm, Float32) {
  for_each_device([&] { compare<float, float>(GetParam().second); });
}
TEST_P(AddNorm, Float64) {
  for_each_device([&] { compare<double, double>(GetParam().second); });
}
TEST_P(AddNorm, Narrow) {
  for_each_device([&] {
    compare<bfloat16, bfloat16>(GetParam().second);
    compare<float16, float16>(GetParam().second);
  });
}
TEST_P(AddNorm, Mixed) {
  for_each_device([&] {
    compare<float, bfloat16>(GetParam().second);
    compare<float, float16>(GetParam().second);
    compare<bfloat16, float>(GetParam().second);
    compare<bfloat16, float16>(GetParam().second);
    compare<float16, float>(GetParam().second);
    compare<float16, bfloat16>(GetParam().second);
  });
}

INSTANTIATE_TEST_SUITE_P(Cases, AddNorm, testing::ValuesIn(cases()), [](const auto& test) { return test.param.first; });

TEST(AddNormTargets, EveryInstructionSet) {
  on_every_target([] {
    for (const auto& [name, shape] : cases()) {
      SCOPED_TRACE(name);
      if (shape.rows > 100) continue;
      compare<float, float>(shape);
      compare<double, double>(shape);
      compare<bfloat16, bfloat16>(shape);
      compare<float16, float16>(shape);
    }
  });
}

TEST(AddNormBits, SameForAnyNumberOfThreads) {
  for_each_device([&] {
    for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
      const NormShape shape{1500, 77, kind};
      NormProblem<bfloat16, bfloat16> one(shape);
      one.forward(1);
      one.backward(1);
      for (const int64_t threads : {1, 2, 3}) {
        NormProblem<bfloat16, bfloat16> many(shape);
        many.forward(threads);
        many.backward(threads);
        EXPECT_TRUE(same_bits(one.y, many.y) && same_bits(one.residual_out, many.residual_out)) << threads;
        EXPECT_TRUE(same_bits(one.dx, many.dx) && same_bits(one.dresidual, many.dresidual)) << threads;
        EXPECT_TRUE(same_bits(one.dweight, many.dweight) && same_bits(one.dbias, many.dbias)) << threads;
      }
    }
  });
}

TEST(AddNormLimits, InfiniteAndNanInputsStayVisibleInTheirRow) {
  for_each_device([&] {
    const float inf = std::numeric_limits<float>::infinity();
    for (const NormKind kind : {NormKind::kRms, NormKind::kLayer})
      for (const float bad : {inf, -inf, std::nanf("")})
        for (const int64_t place : {0, 69}) {
          NormProblem<float, float> problem({3, 70, kind});
          problem.x[70 + place] = bad;
          problem.forward();
          problem.backward();
          EXPECT_FALSE(std::isfinite(problem.y[70 + place]));
          EXPECT_FALSE(std::isfinite(problem.residual_out[70 + place]));
          EXPECT_FALSE(std::isfinite(problem.dx[70 + place]));
          EXPECT_FALSE(std::isfinite(problem.dweight[place]));
          EXPECT_TRUE(std::isfinite(problem.y[69]) && std::isfinite(problem.y[140]));
          EXPECT_TRUE(std::isfinite(problem.dx[69]) && std::isfinite(problem.dx[140]));
        }
  });
}

// Its variance is 0 and rstd = eps^-1/2, by which dx multiplies rounding errors of dy.
TEST(AddNormLimits, LayerNormOfOneElementIsItsBias) {
  for_each_device([&] {
    NormProblem<float, float> problem({5, 1, NormKind::kLayer});
    problem.forward();
    problem.backward();
    for (const float y : problem.y) EXPECT_EQ(y, problem.bias[0]);
    expect_near("dx", problem.dx, doubles(problem.dresidual_out), {1e-4, 1e-4});
  });
}

TEST(AddNormLimits, LayerNormKeepsItsDigitsFarFromZero) {
  for_each_device([&] {
    NormProblem<float, float> problem({4, 100, NormKind::kLayer, false});
    for (float& x : problem.x) x += 4096;  // exact to 2^-11
    problem.forward();
    expect_near("y", problem.y, kernels::reference::add_norm(problem.arguments()).y, {2e-4, 2e-4});
  });
}

}  // namespace
}  // namespace adder::tests
