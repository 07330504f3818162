#include "adder/kernels/selective_scan.h"

#include <gtest/gtest.h>

#include "adder/kernels/selective_scan_ref.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/every_target.h"
#include "tests/kernels/scan_problem.h"

namespace adder::tests {
namespace {

using kernels::bfloat16;
using kernels::float16;

template <typename T>
void compare(const ScanShape& shape, Tolerance forward, Tolerance backward) {
  ScanProblem<T, T> problem(shape);
  ScanProblem<double, T> truth(shape);
  run_forward(problem.forward());
  kernels::reference::selective_scan_forward(truth.forward());
  expect_near("y", problem.y, truth.y, forward);
  expect_near("final_state", problem.final_state, truth.final_state,
              std::is_same_v<T, double> ? forward : kFloat32Forward);

  ScanProblem<T, T> inference(shape);
  auto forward_only = inference.forward();
  forward_only.border_states = nullptr;  // other instructions where there are many steps
  run_forward(forward_only);
  expect_near("y without saved states", inference.y, truth.y, forward);
  expect_near("final_state without saved states", inference.final_state, truth.final_state,
              std::is_same_v<T, double> ? forward : kFloat32Forward);

  run_backward(problem.backward());
  kernels::reference::selective_scan_backward(truth.backward());
  const Tolerance sums = std::is_same_v<T, double> ? backward : kFloat32Backward;
  expect_near("du", problem.du, truth.du, backward);
  expect_near("ddelta", problem.ddelta, truth.ddelta, backward);
  if (shape.gate) expect_near("dz", problem.dz, truth.dz, backward);
  if (!shape.B_const) expect_near("dB", problem.dB_step, truth.dB_step, backward);
  if (!shape.C_const) expect_near("dC", problem.dC_step, truth.dC_step, backward);
  expect_near("dA", problem.dA, truth.dA, sums);
  if (shape.B_const) expect_near("dB_const", problem.dB_const, truth.dB_const, sums);
  if (shape.C_const) expect_near("dC_const", problem.dC_const, truth.dC_const, sums);
  if (shape.skip) expect_near("dD", problem.dskip, truth.dskip, sums);
  if (shape.bias) expect_near("ddelta_bias", problem.dbias, truth.dbias, sums);
  if (shape.initial) expect_near("dinitial_state", problem.dinitial, truth.dinitial, sums);
}

// The base row, then rows that change one thing.
std::vector<std::pair<std::string, ScanShape>> cases() {
  std::vector<std::pair<std::string, ScanShape>> rows{{"base", {}}};
  const auto row = [&](const std::string& name, auto change) {
    ScanShape s;
    change(s);
    rows.emplace_back(name, s);
  };
  for (const int64_t L : {0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 129})
    row("L" + std::to_string(L), [=](auto& s) { s.L = L; });
  for (const int64_t L : {127, 128, 2047, 2048, 2049})
    row("L" + std::to_string(L), [=](auto& s) { s.L = L, s.D = 5, s.N = 3; });
  row("B65537", [](auto& s) { s.B = 65537, s.L = 2, s.D = 3, s.N = 2; });
  for (const int64_t D : {1, 7, 16, 65, 130}) row("D" + std::to_string(D), [=](auto& s) { s.D = D; });
  for (const int64_t N : {1, 3, 4, 16, 19, 64}) row("N" + std::to_string(N), [=](auto& s) { s.N = N; });
  for (const int64_t B : {0, 1, 5, 67}) row("B" + std::to_string(B), [=](auto& s) { s.B = B; });
  const auto single_step = [&](const std::string& name, auto change) {
    row("step_" + name, [&](ScanShape& s) {
      s.L = 1;
      change(s);
    });
  };
  for (const int64_t N : {1, 7, 16, 19}) single_step("N" + std::to_string(N), [=](auto& s) { s.N = N; });
  single_step("groups2", [](auto& s) { s.G = 2; });
  single_step("mask", [](auto& s) { s.mask = true; });
  single_step("strided", [](auto& s) { s.strided = true; });
  single_step("no_initial_state", [](auto& s) { s.initial = false; });
  row("groups2", [](auto& s) { s.G = 2; });
  row("groups_of_one_channel", [](auto& s) { s.G = s.D; });
  row("zoh", [](auto& s) { s.zoh = true; });
  row("zoh_tiny_delta", [](auto& s) {
    s.zoh = true;
    s.softplus = s.bias = false;
    s.delta_scale = 1e-8;
  });
  row("complex", [](auto& s) { s.complex = true; });
  row("complex_zoh", [](auto& s) { s.complex = s.zoh = true; });
  row("complex_zoh_tiny_delta", [](auto& s) {
    s.complex = s.zoh = true;
    s.softplus = s.bias = false;
    s.delta_scale = 1e-8;
  });
  row("constant_B", [](auto& s) { s.B_const = true; });
  row("constant_C", [](auto& s) { s.C_const = true; });
  row("constant_BC_zoh", [](auto& s) { s.B_const = s.C_const = s.zoh = true; });
  row("constant_BC_complex", [](auto& s) { s.B_const = s.C_const = s.complex = true; });
  row("no_skip", [](auto& s) { s.skip = false; });
  row("no_gate", [](auto& s) { s.gate = false; });
  row("no_bias", [](auto& s) { s.bias = false; });
  row("no_softplus", [](auto& s) { s.softplus = s.bias = false; });
  row("no_initial_state", [](auto& s) { s.initial = false; });
  row("mask", [](auto& s) { s.mask = true; });
  row("mask_complex_zoh", [](auto& s) { s.mask = s.complex = s.zoh = true; });
  row("reverse", [](auto& s) { s.reverse = true; });
  row("strided", [](auto& s) { s.strided = true; });
  row("packed", [](auto& s) {
    s.B = 1;
    s.L = 200;
    s.cu_seqlens = {0, 1, 1, 66, 130, 197, 200, 200};
  });
  row("packed_reverse_mask", [](auto& s) {
    s.B = 1;
    s.L = 200;
    s.reverse = s.mask = true;
    s.cu_seqlens = {0, 0, 64, 67, 200};
  });
  row("packed_groups_complex", [](auto& s) {
    s.B = 1;
    s.L = 100;
    s.G = 4;
    s.complex = true;
    s.cu_seqlens = {0, 31, 100};
  });
  // 16 states, as in the published models, and 8: shapes that the GPU has kernels of their own for.
  const auto usual = [&](const std::string& name, auto change) {
    for (const int64_t N : {8, 16})
      row("usual_N" + std::to_string(N) + "_" + name, [&](ScanShape& s) {
        s.N = N;
        s.D = 48;
        change(s);
      });
  };
  usual("base", [](auto&) {});
  for (const int64_t L : {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 300})
    usual("L" + std::to_string(L), [=](auto& s) { s.L = L; });
  for (const int64_t D : {1, 7, 8, 15, 20, 40, 56, 130}) usual("D" + std::to_string(D), [=](auto& s) { s.D = D; });
  usual("B5", [](auto& s) { s.B = 5; });
  usual("groups2", [](auto& s) { s.G = 2; });
  usual("groups6", [](auto& s) { s.G = 6; });
  usual("groups_of_one_channel", [](auto& s) { s.D = s.G = 5; });
  usual("no_gate", [](auto& s) { s.gate = false; });
  usual("nothing_optional", [](auto& s) { s.skip = s.gate = s.bias = s.softplus = s.initial = false; });
  usual("mask", [](auto& s) { s.mask = true; });
  usual("reverse", [](auto& s) { s.reverse = true; });
  usual("reverse_mask", [](auto& s) { s.reverse = s.mask = true; });
  usual("strided", [](auto& s) { s.strided = true; });
  for (const int64_t before : {1, 2, 4})
    usual("B_after_" + std::to_string(before), [=](auto& s) { s.before_B = before, s.G = 2, s.L = 200; });
  usual("packed", [](auto& s) {
    s.B = 1;
    s.L = 200;
    s.cu_seqlens = {0, 1, 1, 66, 130, 197, 200, 200};
  });
  // A few steps: on the GPU kernels that walk through the batch, here also with more sequences than walkers.
  for (const int64_t L : {4, 5, 7, 8, 9, 12}) usual("L" + std::to_string(L), [=](auto& s) { s.L = L; });
  const auto few = [&](const std::string& name, int64_t L, auto change) {
    usual("few_" + name, [&](ScanShape& s) {
      s.L = L;
      change(s);
    });
  };
  few("groups6", 3, [](auto& s) { s.G = 6; });
  few("D130", 6, [](auto& s) { s.D = 130; });
  few("D7", 4, [](auto& s) { s.D = 7; });
  few("mask", 8, [](auto& s) { s.mask = true; });
  few("reverse_mask", 7, [](auto& s) { s.reverse = s.mask = true; });
  few("strided", 4, [](auto& s) { s.strided = true; });
  few("nothing_optional", 2, [](auto& s) { s.skip = s.gate = s.bias = s.softplus = s.initial = false; });
  few("many_sequences", 3, [](auto& s) { s.B = 300, s.D = 520; });
  // Long enough to be cut into parts, with states that fade between them and with states that do not.
  for (const int64_t L : {511, 512, 600, 1500}) usual("L" + std::to_string(L), [=](auto& s) { s.L = L, s.D = 20; });
  const auto lasting = [](ScanShape& s) {
    s.L = 520, s.D = 24;
    s.softplus = s.bias = false;
    s.delta_scale = 2e-2;
  };
  usual("lasting", lasting);
  usual("lasting_reverse_mask", [&](auto& s) { lasting(s), s.reverse = s.mask = true; });
  usual("lasting_no_initial_state", [&](auto& s) { lasting(s), s.initial = s.gate = false; });
  // Parts through which states grow here and fade there.
  usual("lasting_negative", [&](auto& s) { lasting(s), s.negative = true; });
  usual("lasting_groups", [&](auto& s) { lasting(s), s.G = 2; });
  usual("lasting_packed", [&](auto& s) {
    lasting(s);
    s.B = 1;
    s.cu_seqlens = {0, 0, 5, 518, 519, 520};
  });
  usual("packed_reverse", [](auto& s) {
    s.B = 1;
    s.L = 200;
    s.reverse = true;
    s.cu_seqlens = {0, 0, 64, 67, 200};
  });
  return rows;
}

class SelectiveScan : public testing::TestWithParam<std::pair<std::string, ScanShape>> {};

TEST_P(SelectiveScan, Float32) {
  for_each_device([] { compare<float>(GetParam().second, kFloat32Forward, kFloat32Backward); });
}
TEST_P(SelectiveScan, Float64) {
  for_each_device([] { compare<double>(GetParam().second, kFloat64Forward, kFloat64Backward); });
}
TEST_P(SelectiveScan, BFloat16) {
  for_each_device([] { compare<bfloat16>(GetParam().second, kBFloat16, kBFloat16); });
}
TEST_P(SelectiveScan, Float16) {
  ScanShape shape = GetParam().second;
  shape.delta_scale = std::max(shape.delta_scale, 1e-2);  // its normal numbers end at 6e-5
  for_each_device([&] { compare<float16>(shape, kFloat16, kFloat16); });
}

INSTANTIATE_TEST_SUITE_P(Cases, SelectiveScan, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.first; });

TEST(SelectiveScanTargets, EveryInstructionSet) {
  on_every_target([] {
    for (const auto& [name, shape] : cases())
      for (const char* wanted : {"base", "D7", "step_N16", "zoh_tiny_delta", "complex_zoh", "constant_BC_complex",
                                 "groups2", "packed_reverse_mask"})
        if (name == wanted) {
          SCOPED_TRACE(name);
          compare<float>(shape, kFloat32Forward, kFloat32Backward);
          compare<double>(shape, kFloat64Forward, kFloat64Backward);
          compare<bfloat16>(shape, kBFloat16, kBFloat16);
        }
  });
}

TEST(SelectiveScanBits, SameForAnyNumberOfThreads) {
  for_each_device([&] {
    ScanShape shape;
    shape.B = 5;
    shape.L = 150;
    shape.D = 200;
    ScanProblem<float> one(shape);
    run_forward(one.forward(1));
    run_backward(one.backward(1));
    for (const int64_t threads : {1, 2, 3, 7}) {
      ScanProblem<float> many(shape);
      run_forward(many.forward(threads));
      run_backward(many.backward(threads));
      EXPECT_TRUE(same_bits(one.y, many.y) && same_bits(one.final_state, many.final_state)) << threads;
      EXPECT_TRUE(same_bits(one.du, many.du) && same_bits(one.ddelta, many.ddelta) && same_bits(one.dz, many.dz))
          << threads;
      EXPECT_TRUE(same_bits(one.dB_step, many.dB_step) && same_bits(one.dC_step, many.dC_step)) << threads;
      EXPECT_TRUE(same_bits(one.dA, many.dA) && same_bits(one.dskip, many.dskip) && same_bits(one.dbias, many.dbias))
          << threads;
      EXPECT_TRUE(same_bits(one.dinitial, many.dinitial)) << threads;
    }
  });
}

TEST(SelectiveScanLimits, ZeroDeltaHoldsTheStateExactly) {
  for_each_device([&] {
    ScanShape shape;
    shape.softplus = shape.bias = false;
    ScanProblem<float> problem(shape);
    problem.delta.assign(problem.delta.size(), 0.0f);
    run_forward(problem.forward());
    EXPECT_TRUE(same_bits(problem.final_state, problem.initial));
  });
}

void expect_nonfinite_stays_visible() {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    ScanShape shape;
    shape.gate = false;
    ScanProblem<float> problem(shape);
    problem.u[0] = bad;
    run_forward(problem.forward());
    EXPECT_FALSE(std::isfinite(problem.y[0]));
    EXPECT_TRUE(std::isfinite(problem.y[1]));
    EXPECT_TRUE(std::isfinite(problem.y[shape.L * shape.D]));
  }
  ScanShape shape;
  ScanProblem<float> problem(shape);
  problem.A[0] = std::numeric_limits<float>::quiet_NaN();
  run_forward(problem.forward());
  EXPECT_TRUE(std::isnan(problem.y[0]) && std::isnan(problem.final_state[0]));
  EXPECT_TRUE(std::isfinite(problem.y[1]));
}

TEST(SelectiveScanLimits, InfiniteAndNanInputsStayVisible) {
  for_each_device([] { expect_nonfinite_stays_visible(); });
  on_every_target([] { expect_nonfinite_stays_visible(); });
}

TEST(SelectiveScanLimits, MaskedStepsAreNotRead) {
  for_each_device([&] {
    ScanShape shape;
    shape.mask = true;
    ScanProblem<float> clean(shape), dirty(shape);
    for (int64_t i = 0; i < shape.B * shape.L; ++i)
      if (!dirty.mask[i]) {
        for (auto* x : {&dirty.u, &dirty.delta, &dirty.z, &dirty.dy})
          std::fill_n(x->begin() + i * shape.D, shape.D, std::nanf(""));
        for (auto* x : {&dirty.B_step, &dirty.C_step}) std::fill_n(x->begin() + i * shape.N, shape.N, std::nanf(""));
      }
    run_forward(clean.forward());
    run_backward(clean.backward());
    run_forward(dirty.forward());
    run_backward(dirty.backward());
    EXPECT_TRUE(same_bits(clean.y, dirty.y) && same_bits(clean.final_state, dirty.final_state));
    EXPECT_TRUE(same_bits(clean.du, dirty.du) && same_bits(clean.dA, dirty.dA) &&
                same_bits(clean.dB_step, dirty.dB_step));
  });
}

}  // namespace
}  // namespace adder::tests
