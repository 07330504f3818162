#include "adder/ops/selective_scan.h"

#include <gtest/gtest.h>

#include "tests/ops/scan_arguments.h"

namespace adder::tests {
namespace {

constexpr Scan kOperator = &here::selective_scan, kComposite = &ops::selective_scan_composite;

std::vector<std::pair<std::string, ScanCase>> cases() {
  std::vector<std::pair<std::string, ScanCase>> rows{{"base", {}}};
  const auto row = [&](const std::string& name, auto change) {
    ScanCase s;
    change(s);
    rows.emplace_back(name, s);
  };
  for (const int64_t L : {1, 2, 3, 64, 129}) row("L" + std::to_string(L), [=](auto& s) { s.L = L; });
  for (const int64_t D : {1, 17, 66}) row("D" + std::to_string(D), [=](auto& s) { s.D = D; });
  for (const int64_t N : {1, 4, 16}) row("N" + std::to_string(N), [=](auto& s) { s.N = N; });
  row("groups2", [](auto& s) { s.G = 2; });
  row("groups_of_one_channel", [](auto& s) { s.G = s.D; });
  row("groups_constant_B", [](auto& s) { s.G = 5, s.constant_B = true; });
  row("zoh", [](auto& s) { s.zoh = true; });
  row("complex", [](auto& s) { s.complex = true; });
  row("complex_zoh", [](auto& s) { s.complex = s.zoh = true; });
  row("complex_groups", [](auto& s) { s.complex = true, s.G = 4; });
  for (const int exponent : {2, 4, 6, 8})
    for (const bool complex : {false, true})
      row("zoh_delta_1em" + std::to_string(exponent) + (complex ? "_complex" : ""), [=](auto& s) {
        s.zoh = true;
        s.complex = complex;
        s.softplus = s.bias = false;
        s.delta_scale = std::pow(10.0, -exponent);
      });
  row("constant_B", [](auto& s) { s.constant_B = true; });
  row("constant_C", [](auto& s) { s.constant_C = true; });
  row("constant_BC_zoh", [](auto& s) { s.constant_B = s.constant_C = s.zoh = true; });
  row("constant_BC_complex", [](auto& s) { s.constant_B = s.constant_C = s.complex = true; });
  row("no_skip", [](auto& s) { s.skip = false; });
  row("no_gate", [](auto& s) { s.gate = false; });
  row("no_bias", [](auto& s) { s.bias = false; });
  row("no_softplus", [](auto& s) { s.softplus = s.bias = false; });
  row("no_initial_state", [](auto& s) { s.initial = false; });
  row("nothing_optional", [](auto& s) { s.skip = s.gate = s.bias = s.softplus = s.initial = false; });
  row("mask", [](auto& s) { s.mask = true; });
  row("mask_reverse_complex_zoh", [](auto& s) { s.mask = s.reverse = s.complex = s.zoh = true; });
  row("reverse", [](auto& s) { s.reverse = true; });
  row("packed", [](auto& s) { s.B = 1, s.L = 140, s.cu_seqlens = {0, 0, 1, 1, 66, 131, 140, 140}; });
  row("packed_reverse_mask_groups", [](auto& s) {
    s.B = 1, s.L = 140, s.G = 2, s.mask = s.reverse = true;
    s.cu_seqlens = {0, 64, 67, 140};
  });
  row("packed_complex_constant", [](auto& s) {
    s.B = 1, s.constant_B = s.constant_C = s.complex = true;
    s.cu_seqlens = {0, 31, 70};
  });
  return rows;
}

class SelectiveScan : public testing::TestWithParam<std::pair<std::string, ScanCase>> {};
INSTANTIATE_TEST_SUITE_P(Cases, SelectiveScan, testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.first; });

TEST_P(SelectiveScan, Float64EqualsTheComposite) {
  for_each_device([&] {
    const ScanArguments a = make_arguments(GetParam().second);
    for (const Through through : {Through::kBoth, Through::kOutput, Through::kState})
      expect_near(run(kOperator, a, through), run(kComposite, a, through), kFloat64Forward, kFloat64Backward);
  });
}

TEST_P(SelectiveScan, Float32EqualsTheFloat64Composite) {
  for_each_device([&] {
    const ScanArguments a = make_arguments(GetParam().second);
    expect_near(run(kOperator, cast(a, torch::kFloat)), run(kComposite, a), kFloat32Forward, kFloat32Backward);
  });
}

// The truth is the float64 composite on the inputs as the narrow type holds them. Two errors are compared: that of the
// operator and that of the composite, both run in the narrow type, so that both round outputs and gradients once and
// sum in float32. Sums of many float32 terms (dA, states) differ by their order: their float32 tolerance is allowed.
TEST_P(SelectiveScan, NarrowTypesAreAtMostTwiceAsFarOffAsTheComposite) {
  for_each_device([&] {
    for (const auto type : {torch::kBFloat16, torch::kHalf}) {
      ScanCase s = GetParam().second;
      if (type == torch::kHalf) s.delta_scale = std::max(s.delta_scale, 1e-2);  // its normal numbers end at 6e-5
      const ScanArguments truth_arguments = make_arguments(s, type), a = cast(truth_arguments, type);
      const NamedTensors truth = run(kComposite, truth_arguments), composite = run(kComposite, a),
                         got = run(kOperator, a);
      for (size_t i = 0; i < got.size(); ++i) {
        const auto& [name, expected] = truth[i];
        ASSERT_EQ(got[i].second.scalar_type(), composite[i].second.scalar_type()) << name;
        const double scale = as_real(expected).abs().max().item<double>();
        EXPECT_LE(error_of(as_real(got[i].second), as_real(expected)),
                  2 * error_of(as_real(composite[i].second), as_real(expected)) + kFloat32Backward.scaled * scale)
            << name << " in " << type;
      }
    }
  });
}

TEST(SelectiveScanViews, EqualContiguousOnes) {
  for_each_device([&] {
    for (const bool complex : {false, true}) {
      ScanCase s;
      s.complex = complex;
      s.mask = true;
      const int64_t values = complex ? 2 * s.N : s.N, rank = 3;
      const ScanArguments base = make_arguments(s);
      torch::manual_seed(3);
      const auto real = torch::kDouble;
      const torch::Tensor wide = torch::randn({s.B, s.L, 2 * s.D}, real).requires_grad_();
      const torch::Tensor projected = torch::randn({s.B, s.L, rank + 2 * values}, real).requires_grad_();
      const torch::Tensor narrow_delta = torch::randn({s.B, s.L, 1}, real).requires_grad_();
      const torch::Tensor A = base.A.t().contiguous().requires_grad_();
      const torch::Tensor skip = torch::randn({s.D, 3}, real).requires_grad_();
      const torch::Tensor state = torch::randn({s.N, s.D, s.B}, base.A.options()).requires_grad_();
      const torch::Tensor mask = base.options.mask->t().contiguous().t();
      const NamedTensors leaves{{"wide", wide}, {"projected", projected}, {"delta", narrow_delta}, {"A", A},
                                {"D", skip},    {"state", state}};
      const auto run_views = [&](Scan scan) {
        ScanArguments a = base;
        a.u = wide.slice(2, 0, s.D);
        a.options.z = wide.slice(2, s.D, 2 * s.D);
        a.delta = narrow_delta.expand({s.B, s.L, s.D});
        a.B = projected.slice(2, rank, rank + values).unsqueeze(2);
        a.C = projected.slice(2, rank + values).unsqueeze(2);
        a.A = A.t().conj();
        a.options.D = skip.select(1, 1);
        a.options.delta_bias = skip.select(1, 2);
        a.options.initial_state = state.permute({2, 1, 0}).conj();
        a.options.mask = mask;
        const auto [y, final_state] = call(scan, a);
        NamedTensors result{{"y", y.detach()}, {"final_state", final_state.detach()}};
        append_gradients(result, y, final_state, leaves);
        return result;
      };
      expect_near(run_views(kOperator), run_views(kComposite), kFloat64Forward, kFloat64Backward);
    }
  });
}

TEST(SelectiveScanViews, TimeAndChannelsSwappedAndStepped) {
  for_each_device([&] {
    const ScanArguments base = make_arguments({});
    ScanArguments a = base;
    a.u = a.u.transpose(1, 2).contiguous().transpose(1, 2);  // (B, D, L) in memory
    a.delta = torch::stack({a.delta, a.delta + 1}, 3).select(3, 0);
    a.options.z = torch::stack({*a.options.z + 1, *a.options.z}, 1).select(1, 1);
    a.B = torch::cat({a.B, a.B}, 3).slice(3, 0, a.B.size(3));
    for (const auto type : {torch::kDouble, torch::kFloat, torch::kBFloat16})
      expect_same_bits(run(kOperator, cast(a, type)), run(kOperator, cast(base, type)));
  });
}

TEST(SelectiveScanViews, StepsSideBySide) {
  std::vector<std::pair<std::string, ScanCase>> rows;
  const auto row = [&](const std::string& name, ScanCase s) { rows.emplace_back(name, std::move(s)); };
  row("whole tiles", {.B = 3, .L = 64, .D = 48, .N = 16});
  row("part of a tile, few channels", {.B = 2, .L = 72, .D = 20, .N = 16, .G = 2});
  row("8 states", {.B = 2, .L = 40, .D = 33, .N = 8, .gate = false});
  row("one group a channel", {.B = 1, .L = 48, .D = 6, .N = 8, .G = 6, .softplus = false});
  row("parts of a long sequence", {.B = 1, .L = 2056, .D = 70, .N = 16, .initial = false});
  row("parts, 8 states", {.B = 2, .L = 1024, .D = 40, .N = 8, .G = 2});
  row("rows at odd places", {.B = 2, .L = 70, .D = 20, .N = 16});
  row("few steps", {.B = 4, .L = 8, .D = 64, .N = 16});
  row("one channel", {.B = 2, .L = 32, .D = 1, .N = 16});
  row("reverse", {.B = 2, .L = 64, .D = 48, .N = 16, .reverse = true});
  row("mask", {.B = 2, .L = 64, .D = 48, .N = 16, .mask = true});
  row("packed", {.B = 1, .L = 64, .D = 48, .N = 16, .cu_seqlens = {0, 16, 64}});
  row("complex", {.B = 2, .L = 32, .D = 10, .N = 16, .complex = true});
  row("constant B, zoh", {.B = 2, .L = 32, .D = 10, .N = 16, .zoh = true, .constant_B = true});
  const auto swapped = [](const torch::Tensor& t) {
    return t.dim() < 3 ? t : t.movedim(1, -1).contiguous().movedim(-1, 1);
  };
  for_each_device([&] {
    for (const auto& [name, s] : rows) {
      SCOPED_TRACE(name);
      const ScanArguments base = make_arguments(s);
      ScanArguments all = base, gate = base;
      for (torch::Tensor* t : {&all.u, &all.delta, &all.B, &all.C}) *t = swapped(*t);
      if (s.gate) gate.options.z = all.options.z = swapped(*base.options.z);
      for (const auto type : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        SCOPED_TRACE(type);
        const NamedTensors expected = run(kOperator, cast(base, type)), got = run(kOperator, cast(all, type));
        expect_same_bits(got, expected);
        expect_same_bits(run(kOperator, cast(gate, type)), expected);
        for (const auto& [what, tensor] : got) {  // lie as what they belong to
          const bool by_step = what == "y" || what == "du" || what == "ddelta" || what == "dz" || tensor.dim() == 4;
          if (by_step && tensor.size(-1) > 1) {
            EXPECT_EQ(tensor.stride(1), 1) << what;
          }
        }
      }
    }
  });
}

TEST(SelectiveScanViews, GradientsOfTheOutputsMayHaveAnyStrides) {
  for_each_device([&] {
    for (const bool complex : {false, true}) {
      ScanCase s;
      s.complex = complex;
      ScanArguments a = make_arguments(s);
      const NamedTensors leaves = make_leaves(a);
      torch::autograd::variable_list inputs;
      for (const auto& [name, leaf] : leaves) inputs.push_back(leaf);
      const auto [y, state] = call(kOperator, a);
      const auto grads = [&](const torch::Tensor& dy, const torch::Tensor& dstate) {
        NamedTensors out;
        const auto g = torch::autograd::grad({y, state}, inputs, {dy, dstate}, /*retain_graph=*/true);
        for (size_t i = 0; i < g.size(); ++i) out.emplace_back("d" + leaves[i].first, g[i]);
        return out;
      };
      const torch::Tensor one = torch::full({1, 1, 1}, 0.7, a.u.options());
      const torch::Tensor state_one = torch::full({1, 1, 1}, 0.3, state.options()).conj();
      const torch::Tensor dy = torch::randn({s.D, s.L, s.B}, a.u.options()).permute({2, 1, 0});
      const torch::Tensor dstate = torch::randn({s.N, s.D, s.B}, state.options()).permute({2, 1, 0}).conj();
      expect_same_bits(grads(one.expand_as(y), state_one.expand_as(state)),
                       grads(one.expand_as(y).contiguous(), state_one.expand_as(state).contiguous()));
      expect_same_bits(grads(dy, dstate), grads(dy.contiguous(), dstate.contiguous()));
    }
  });
}

TEST(SelectiveScanBits, SameOnEveryRunAndForAnyNumberOfThreads) {
  for_each_device([&] {
    const int threads = at::get_num_threads();
    for (const bool packed : {false, true}) {
      ScanCase s;
      s.B = packed ? 1 : 5;
      s.L = 150;
      s.D = 200;
      s.mask = true;
      if (packed) s.cu_seqlens = {0, 3, 70, 70, 150};
      for (const auto type : {torch::kFloat, torch::kBFloat16}) {
        const ScanArguments a = cast(make_arguments(s), type);
        at::set_num_threads(1);
        const NamedTensors one = run(kOperator, a);
        for (const int n : {1, 2, 3}) {
          at::set_num_threads(n);
          expect_same_bits(run(kOperator, a), one);
        }
      }
    }
    at::set_num_threads(threads);
  });
}

TEST(SelectiveScanLimits, LargeImaginaryPartsKeepTheirPhase) {
  for_each_device([&] {
    ScanCase s;
    s.complex = true;
    s.N = 16;
    s.L = 8;
    s.delta_scale = 10;  // delta up to 30, so phases up to 1,500 a step
    ScanArguments a = make_arguments(s);
    a.A = torch::complex(torch::full({s.D, s.N}, -1e-3, torch::kDouble),
                         (torch::arange(s.N, torch::kFloat) * M_PI).to(torch::kDouble).expand({s.D, s.N}));
    for (const bool zoh : {false, true}) {
      a.options.discretization = zoh ? "zoh" : "euler";
      // A phase of some thousand, known to a few units in its last place, is right to 1e-12.
      expect_near(run(kOperator, a), run(kComposite, a), {0, 1e-12}, {0, 1e-12});
    }
  });
}

TEST(SelectiveScanGradient, TheCompositeHasSecondDerivativesAndTheOperatorSaysThatItHasNot) {
  ScanCase s;
  s.B = 1, s.L = 3, s.D = 2, s.N = 1;
  for (const char* only : {"u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"}) {
    ScanArguments a = make_arguments(s);
    torch::Tensor leaf;
    a.each([&](const std::string& name, torch::Tensor& t) {
      if (name == only) leaf = t = t.requires_grad_();
    });
    const auto twice = [&](Scan scan) {
      const auto [y, state] = call(scan, a);
      const auto first = torch::autograd::grad({y.square().sum()}, {leaf}, {}, std::nullopt, /*create_graph=*/true)[0];
      first.square().sum().backward();
    };
    EXPECT_NO_THROW(twice(kComposite)) << only;
    EXPECT_TRUE(leaf.grad().abs().sum().item<double>() > 0) << only;
    EXPECT_EQ(error_text([&] { twice(kOperator); }),
              "selective_scan: has no second derivative; selective_scan_composite has");
  }
}

}  // namespace
}  // namespace adder::tests
