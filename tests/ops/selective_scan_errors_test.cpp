// Bad arguments and bad numbers.
#include <gtest/gtest.h>

#include <limits>

#include "adder/ops/selective_scan.h"
#include "tests/ops/scan_arguments.h"

namespace adder::tests {
namespace {

constexpr Scan kOperator = &ops::selective_scan, kComposite = &ops::selective_scan_composite;

struct BadCall {
  std::string name;
  ScanCase shape;
  std::function<void(ScanArguments&)> spoil;
  std::string message;
};

std::vector<BadCall> bad_calls() {
  std::vector<BadCall> rows;
  ScanCase base;
  base.B = 2, base.L = 7, base.D = 4, base.N = 3;
  ScanCase complex = base, packed = base;
  complex.complex = true;
  packed.B = 1;
  packed.cu_seqlens = {0, 3, 7};
  const auto row = [&](const std::string& name, const ScanCase& shape, auto spoil, const std::string& message) {
    rows.push_back({name, shape, spoil, "selective_scan: " + message});
  };
  const auto f = torch::kFloat;

  row(
      "u_integer", base, [](auto& a) { a.u = a.u.to(torch::kInt); },
      "u must have dtype Float, Double, BFloat16 or Half, got Int");
  row("u_two_dimensions", base, [](auto& a) { a.u = a.u[0]; }, "u must have shape (B, L, D) = (*, *, *), got (7, 4)");
  row(
      "delta_shape", base, [=](auto& a) { a.delta = torch::zeros({2, 6, 4}, f); },
      "delta must have shape (B, L, D) = (2, 7, 4), got (2, 6, 4)");
  row(
      "delta_dtype", base, [](auto& a) { a.delta = a.delta.to(torch::kHalf); },
      "delta must have dtype Float, got Half");
  row(
      "delta_device", base, [](auto& a) { a.delta = a.delta.to(torch::kMeta); },
      "delta must be on the device of u (cpu), got meta");
  row(
      "A_shape", base, [=](auto& a) { a.A = torch::zeros({5, 3}, f); },
      "A must have shape (D, N) = (4, *), got (5, 3)");
  row("A_dtype", base, [](auto& a) { a.A = a.A.to(torch::kDouble); }, "A must have dtype Float, got Double");
  row(
      "A_narrow", base, [](auto& a) { a = cast(a, torch::kBFloat16), a.A = a.A.to(torch::kBFloat16); },
      "A must have dtype Float, got BFloat16");
  row(
      "A_complex_dtype", complex, [](auto& a) { a.A = a.A.to(torch::kComplexDouble); },
      "A must have dtype ComplexFloat, got ComplexDouble");
  row(
      "no_states", base, [=](auto& a) { a.A = torch::zeros({4, 0}, f); },
      "A must have at least one state, got shape (D, N) with N = 0");
  row(
      "B_dimensions", base, [](auto& a) { a.B = a.B.squeeze(2); },
      "B must have shape (B, L, G, N) per step or (D, N) constant, got 3 dimensions");
  row(
      "complex_C_dimensions", complex, [](auto& a) { a.C = a.C.squeeze(2); },
      "C must have shape (B, L, G, 2 N) per step or (D, N) constant, got 3 dimensions");
  row(
      "B_states", base, [=](auto& a) { a.B = torch::zeros({2, 7, 1, 2}, f); },
      "B must have shape (B, L, G, N) = (2, 7, *, 3), got (2, 7, 1, 2)");
  row(
      "complex_B_not_in_pairs", complex, [=](auto& a) { a.B = torch::zeros({2, 7, 1, 3}, f); },
      "B must have shape (B, L, G, 2 N) = (2, 7, *, 6), got (2, 7, 1, 3)");
  row("B_dtype", base, [](auto& a) { a.B = a.B.to(torch::kBFloat16); }, "B must have dtype Float, got BFloat16");
  row(
      "constant_C_shape", base, [=](auto& a) { a.C = torch::zeros({3, 4}, f); },
      "C must have shape (D, N) = (4, 3), got (3, 4)");
  row(
      "constant_B_real_for_complex_A", complex, [=](auto& a) { a.B = torch::zeros({4, 3}, f); },
      "B must have dtype ComplexFloat, got Float");
  row("B_device", base, [](auto& a) { a.B = a.B.to(torch::kMeta); }, "B must be on the device of u (cpu), got meta");
  row(
      "groups_do_not_divide", base, [=](auto& a) { a.B = torch::zeros({2, 7, 3, 3}, f); },
      "B must have a number of groups G that divides D = 4, got G = 3");
  row(
      "no_groups", base, [=](auto& a) { a.C = torch::zeros({2, 7, 0, 3}, f); },
      "C must have a number of groups G that divides D = 4, got G = 0");
  row(
      "groups_differ", base, [=](auto& a) { a.C = torch::zeros({2, 7, 2, 3}, f); },
      "B and C must have the same number of groups, got 1 and 2");
  row("D_shape", base, [=](auto& a) { a.options.D = torch::zeros({5}, f); }, "D must have shape (D) = (4), got (5)");
  row(
      "D_dtype", base, [](auto& a) { a.options.D = a.options.D->to(torch::kDouble); },
      "D must have dtype Float, got Double");
  row(
      "bias_shape", base, [=](auto& a) { a.options.delta_bias = torch::zeros({1, 4}, f); },
      "delta_bias must have shape (D) = (4), got (1, 4)");
  row(
      "z_shape", base, [=](auto& a) { a.options.z = torch::zeros({2, 7, 8}, f); },
      "z must have shape (B, L, D) = (2, 7, 4), got (2, 7, 8)");
  row(
      "z_dtype", base, [](auto& a) { a.options.z = a.options.z->to(torch::kHalf); },
      "z must have dtype Float, got Half");
  row(
      "discretization", base, [](auto& a) { a.options.discretization = "bilinear"; },
      "discretization must be \"euler\" or \"zoh\", got \"bilinear\"");
  row(
      "state_shape", base, [=](auto& a) { a.options.initial_state = torch::zeros({2, 3, 4}, f); },
      "initial_state must have shape (S, D, N) = (2, 4, 3), got (2, 3, 4)");
  row(
      "state_of_packed", packed, [=](auto& a) { a.options.initial_state = torch::zeros({1, 4, 3}, f); },
      "initial_state must have shape (S, D, N) = (2, 4, 3), got (1, 4, 3)");
  row(
      "state_dtype", base, [](auto& a) { a.options.initial_state = a.options.initial_state->to(torch::kBFloat16); },
      "initial_state must have dtype Float, got BFloat16");
  row(
      "state_real_for_complex_A", complex, [=](auto& a) { a.options.initial_state = torch::zeros({2, 4, 3}, f); },
      "initial_state must have dtype ComplexFloat, got Float");
  row(
      "mask_dtype", base, [=](auto& a) { a.options.mask = torch::ones({2, 7}, f); },
      "mask must have dtype Bool, got Float");
  row(
      "mask_shape", base, [](auto& a) { a.options.mask = torch::ones({2, 7, 1}, torch::kBool); },
      "mask must have shape (B, L) = (2, 7), got (2, 7, 1)");

  const auto meta = [](auto& t) { t = t.to(torch::kMeta); };
  const std::string elsewhere = " must be on the device of u (cpu), got meta";
  row("A_device", base, [=](auto& a) { meta(a.A); }, "A" + elsewhere);
  row("D_device", base, [=](auto& a) { meta(*a.options.D); }, "D" + elsewhere);
  row("z_device", base, [=](auto& a) { meta(*a.options.z); }, "z" + elsewhere);
  row("bias_device", base, [=](auto& a) { meta(*a.options.delta_bias); }, "delta_bias" + elsewhere);
  row("state_device", base, [=](auto& a) { meta(*a.options.initial_state); }, "initial_state" + elsewhere);
  row(
      "mask_device", base, [](auto& a) { a.options.mask = torch::ones({2, 7}, torch::kBool).to(torch::kMeta); },
      "mask must be on the device of its input (cpu), got meta");
  row(
      "cu_seqlens_device", packed, [=](auto& a) { meta(*a.options.cu_seqlens); },
      "cu_seqlens must be on the CPU, got meta");

  const auto cut = [&](const std::string& name, const std::vector<int64_t>& values, const std::string& message) {
    row(
        "cu_seqlens_" + name, packed, [=](auto& a) { a.options.cu_seqlens = torch::tensor(values, torch::kLong); },
        message);
  };
  cut("does_not_start_at_0", {1, 3, 7}, "cu_seqlens must start at 0, got 1");
  cut("falls", {0, 8, 7}, "cu_seqlens must never fall, got 8 then 7 at index 2");
  cut("ends_early", {0, 3, 6}, "cu_seqlens must end at L = 7, got 6");
  cut("ends_late", {0, 3, 8}, "cu_seqlens must end at L = 7, got 8");
  row(
      "cu_seqlens_empty", packed, [](auto& a) { a.options.cu_seqlens = torch::empty({0}, torch::kLong); },
      "cu_seqlens must have shape (S + 1), got (0)");
  row(
      "cu_seqlens_two_dimensions", packed, [](auto& a) { a.options.cu_seqlens = a.options.cu_seqlens->unsqueeze(0); },
      "cu_seqlens must have shape (S + 1), got (1, 3)");
  row(
      "cu_seqlens_dtype", packed, [](auto& a) { a.options.cu_seqlens = a.options.cu_seqlens->to(torch::kInt); },
      "cu_seqlens must have dtype Long, got Int");
  row(
      "cu_seqlens_with_a_batch", base, [](auto& a) { a.options.cu_seqlens = torch::tensor({0, 7}, torch::kLong); },
      "cu_seqlens packs sequences into one row, so B must be 1, got 2");
  return rows;
}

class BadArguments : public testing::TestWithParam<BadCall> {};
INSTANTIATE_TEST_SUITE_P(Cases, BadArguments, testing::ValuesIn(bad_calls()),
                         [](const auto& test) { return test.param.name; });

TEST_P(BadArguments, AreNamed) {
  for (const bool gradients : {false, true}) {
    const torch::AutoGradMode mode(gradients);
    ScanArguments a = cast(make_arguments(GetParam().shape), torch::kFloat);
    GetParam().spoil(a);
    a.A.requires_grad_();
    try {
      call(kOperator, a);
      ADD_FAILURE() << "no error, expected: " << GetParam().message;
    } catch (const c10::ValueError& e) {
      EXPECT_EQ(e.what_without_backtrace(), GetParam().message);
    }
  }
}

// Where the composite's result is a number, the operator's is that number; where it is not, neither is the operator's.
TEST(SelectiveScanBadNumbers, ComeOut) {
  for (const bool complex : {false, true})
    for (const bool zoh : {false, true})
      for (const double bad : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(),
                               -std::numeric_limits<double>::infinity()}) {
        ScanCase s;
        s.L = 66;
        s.D = 18;
        s.complex = complex;
        s.zoh = zoh;
        const ScanArguments clean = make_arguments(s);
        for (const char* spoilt : {"u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"}) {
          ScanArguments a = clean;
          a.each([&](const std::string& name, torch::Tensor& t) {
            if (name != spoilt) return;
            t = t.clone();
            t.view(-1)[t.numel() / 3] = bad;
          });
          for (const auto type : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
            const ScanArguments narrow = cast(a, type);
            const auto [y, state] = call(kOperator, narrow);
            const auto [expected_y, expected_state] = call(kComposite, narrow);
            const auto finite = [](const torch::Tensor& t) { return torch::isfinite(as_real(t)); };
            const std::string what = std::string(spoilt) + " " + std::to_string(bad) + (complex ? " complex" : "") +
                                     (zoh ? " zoh " : " ") + c10::toString(type);
            EXPECT_TRUE(torch::equal(finite(y), finite(expected_y))) << what;
            EXPECT_TRUE(torch::equal(finite(state), finite(expected_state))) << what;
          }
        }
      }
}

TEST(SelectiveScanBadNumbers, ComeOutOfTheGradients) {
  ScanArguments a = make_arguments({});
  for (const auto type : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    ScanArguments narrow = cast(a, type);
    const NamedTensors leaves = make_leaves(narrow);
    const auto [y, state] = call(kOperator, narrow);
    torch::Tensor dy = torch::ones_like(y);
    dy[1][40][7] = NAN;
    torch::autograd::variable_list inputs;
    for (const auto& [name, leaf] : leaves) inputs.push_back(leaf);
    const auto grads = torch::autograd::grad({y}, inputs, {dy});
    for (size_t i = 0; i < grads.size(); ++i) {
      EXPECT_TRUE(torch::isnan(grads[i]).any().item<bool>()) << leaves[i].first;
      if (leaves[i].second.size(0) != 2 || leaves[i].second.dim() < 3) continue;
      EXPECT_TRUE(torch::isfinite(grads[i][0]).all().item<bool>()) << leaves[i].first;
    }
  }
}

}  // namespace
}  // namespace adder::tests
