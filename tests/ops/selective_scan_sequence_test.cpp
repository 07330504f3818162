// Cut, packed, padded and empty sequences, and very many of them.
#include <gtest/gtest.h>

#include "adder/ops/selective_scan.h"
#include "tests/ops/scan_arguments.h"

namespace adder::tests {
namespace {

constexpr Scan kOperator = &here::selective_scan, kComposite = &ops::selective_scan_composite;

// Steps [first, first + count) of the arguments, starting from `state`.
ScanArguments piece_of(const ScanArguments& a, int64_t first, int64_t count,
                       const std::optional<torch::Tensor>& state) {
  ScanArguments piece = a;
  const auto cut = [&](torch::Tensor& t) { t = t.narrow(1, first, count); };
  cut(piece.u);
  cut(piece.delta);
  if (a.B.dim() == 4) cut(piece.B);
  if (a.C.dim() == 4) cut(piece.C);
  if (a.options.z.has_value()) cut(*piece.options.z);
  if (a.options.mask.has_value()) cut(*piece.options.mask);
  piece.options.cu_seqlens = std::nullopt;
  piece.options.initial_state = state;
  return piece;
}

// One call for each piece, the state passed on in the direction of time.
NamedTensors run_pieces(ScanArguments a, const std::vector<int64_t>& pieces) {
  const NamedTensors leaves = make_leaves(a);
  std::vector<int64_t> first{0};
  for (const int64_t count : pieces) first.push_back(first.back() + count);
  const auto n = static_cast<int64_t>(pieces.size());
  std::vector<torch::Tensor> ys(pieces.size());
  std::optional<torch::Tensor> state = a.options.initial_state;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t k = a.options.reverse ? n - 1 - i : i;
    std::tie(ys[k], state) = call(kOperator, piece_of(a, first[k], pieces[k], state));
  }
  const torch::Tensor y = torch::cat(ys, 1);
  NamedTensors result{{"y", y.detach()}, {"final_state", state->detach()}};
  append_gradients(result, y, *state, leaves);
  return result;
}

class Variants : public testing::TestWithParam<std::pair<std::string, ScanCase>> {};

std::vector<std::pair<std::string, ScanCase>> variants() {
  std::vector<std::pair<std::string, ScanCase>> rows{{"base", {}}};
  const auto row = [&](const std::string& name, auto change) {
    ScanCase s;
    change(s);
    rows.emplace_back(name, s);
  };
  row("reverse", [](auto& s) { s.reverse = true; });
  row("zoh", [](auto& s) { s.zoh = true; });
  row("complex", [](auto& s) { s.complex = true; });
  row("complex_zoh_reverse", [](auto& s) { s.complex = s.zoh = s.reverse = true; });
  row("constant_BC", [](auto& s) { s.constant_B = s.constant_C = true; });
  row("complex_constant_BC", [](auto& s) { s.complex = s.constant_B = s.constant_C = true; });
  row("no_initial_state", [](auto& s) { s.initial = false; });
  row("plain", [](auto& s) { s.skip = s.gate = s.bias = s.softplus = false; });
  row("groups", [](auto& s) { s.G = 2; });
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Cases, Variants, testing::ValuesIn(variants()),
                         [](const auto& test) { return test.param.first; });

TEST_P(Variants, AnyCutEqualsTheWhole) {
  for_each_device([&] {
    for (const bool mask : {false, true})
      for (const std::vector<int64_t>& pieces : {std::vector<int64_t>{0, 1, 2, 3, 64, 65},
                                                 {65, 64, 3, 2, 1, 0},
                                                 {0, 135, 0},
                                                 {67, 68},
                                                 {1, 1, 1, 0, 1, 131}}) {
        ScanCase s = GetParam().second;
        s.L = 135;
        s.mask = mask;
        const ScanArguments a = make_arguments(s);
        for (const auto type : {torch::kDouble, torch::kFloat}) {
          const bool wide = type == torch::kDouble;
          const NamedTensors whole = run(kOperator, cast(a, type)), chain = run_pieces(cast(a, type), pieces);
          // The recurrence walks the steps one by one, so that a cut changes no bit; sums over all steps are regrouped.
          EXPECT_TRUE(same_bits(chain[0].second, whole[0].second) && same_bits(chain[1].second, whole[1].second));
          expect_near(chain, whole, {0, 0}, wide ? kFloat64Backward : kFloat32Backward);
        }
      }
  });
}

TEST_P(Variants, PackedEqualsSeparate) {
  for_each_device([&] {
    ScanCase s = GetParam().second;
    s.B = 1;
    s.L = 140;
    s.cu_seqlens = {0, 0, 1, 1, 4, 68, 131, 140, 140};
    for (const bool mask : {false, true}) {
      s.mask = mask;
      for (const auto type : {torch::kDouble, torch::kFloat}) {
        ScanArguments a = cast(make_arguments(s), type);
        const NamedTensors packed = run(kOperator, a);
        const NamedTensors leaves = make_leaves(a);
        std::vector<torch::Tensor> ys, states;
        for (int64_t i = 0; i < s.sequences(); ++i) {
          std::optional<torch::Tensor> state;
          if (s.initial) state = a.options.initial_state->narrow(0, i, 1);
          const auto [y, final_state] =
              call(kOperator, piece_of(a, s.cu_seqlens[i], s.cu_seqlens[i + 1] - s.cu_seqlens[i], state));
          ys.push_back(y);
          states.push_back(final_state);
        }
        const torch::Tensor y = torch::cat(ys, 1), state = torch::cat(states);
        NamedTensors separate{{"y", y.detach()}, {"final_state", state.detach()}};
        append_gradients(separate, y, state, leaves);
        EXPECT_TRUE(same_bits(y, packed[0].second) && same_bits(state, packed[1].second));
        expect_near(packed, separate, {0, 0}, type == torch::kDouble ? kFloat64Backward : kFloat32Backward);
      }
    }
  });
}

// Rows padded with NaN: neither results nor gradients know of the padding, which itself gets zeros.
TEST_P(Variants, MaskedPaddingEqualsUnpadded) {
  for_each_device([&] {
    for (const auto& [left, right] : std::vector<std::pair<int64_t, int64_t>>{{5, 0}, {0, 70}, {64, 3}}) {
      const ScanArguments bare = make_arguments(GetParam().second);
      const int64_t L = bare.u.size(1), B = bare.u.size(0);
      const auto pad = [&, left = left, right = right](const torch::Tensor& t, double value) {
        std::vector<int64_t> before = t.sizes().vec(), after = before;
        before[1] = left;
        after[1] = right;
        return torch::cat({torch::full(before, value, t.options()), t, torch::full(after, value, t.options())}, 1);
      };
      ScanArguments padded = bare;
      padded.each([&](const std::string& name, torch::Tensor& t) {
        if (name != "initial_state" && t.dim() >= 3) t = pad(t, NAN);
      });
      padded.options.mask = pad(torch::ones({B, L}), 0).to(torch::kBool);
      for (const auto type : {torch::kDouble, torch::kFloat}) {
        const NamedTensors expected = run(kOperator, cast(bare, type));
        ScanArguments a = cast(padded, type);
        const NamedTensors leaves = make_leaves(a);
        const auto [y, state] = call(kOperator, a);
        NamedTensors got{{"y", y.detach()}, {"final_state", state.detach()}};
        append_gradients(got, y.narrow(1, left, L), state, leaves);
        for (size_t i = 0; i < got.size(); ++i) {
          auto& [name, tensor] = got[i];
          if (tensor.sizes() == expected[i].second.sizes()) continue;
          EXPECT_EQ(tensor.narrow(1, 0, left).count_nonzero().item<int64_t>(), 0) << name;
          EXPECT_EQ(tensor.narrow(1, left + L, right).count_nonzero().item<int64_t>(), 0) << name;
          tensor = tensor.narrow(1, left, L);
        }
        EXPECT_TRUE(same_bits(got[0].second, expected[0].second) && same_bits(got[1].second, expected[1].second));
        expect_near(got, expected, {0, 0}, type == torch::kDouble ? kFloat64Backward : kFloat32Backward);
      }
    }
  });
}

TEST_P(Variants, NoStepsLeaveTheStateAsItIs) {
  for_each_device([&] {
    for (const auto& [B, L] : std::vector<std::pair<int64_t, int64_t>>{{2, 0}, {0, 3}, {0, 0}})
      for (const bool mask : {false, true}) {
        ScanCase s = GetParam().second;
        s.B = B;
        s.L = L;
        s.mask = mask;
        ScanArguments a = cast(make_arguments(s), torch::kFloat);
        const NamedTensors result = run(kOperator, a);
        const torch::Tensor state = a.options.initial_state.value_or(torch::zeros({B, s.D, s.N}, a.A.options()));
        EXPECT_EQ(result[0].second.sizes(), torch::IntArrayRef({B, L, s.D}));
        EXPECT_TRUE(same_bits(result[1].second, state));
        expect_near(result, run(kComposite, a), {0, 0}, {0, 0});
        for (const bool gradients : {false, true}) {
          const torch::AutoGradMode mode(gradients);
          make_leaves(a);
          const torch::Tensor after = std::get<1>(call(kOperator, a));
          EXPECT_FALSE(s.initial && B > 0 && after.is_alias_of(*a.options.initial_state));
        }
      }
  });
}

TEST(SelectiveScanPacked, NoSequencesAtAll) {
  for_each_device([&] {
    ScanCase s;
    s.B = 1;
    s.L = 0;
    s.cu_seqlens = {0};
    const NamedTensors result = run(kOperator, make_arguments(s));
    EXPECT_EQ(result[0].second.sizes(), torch::IntArrayRef({1, 0, s.D}));
    EXPECT_EQ(result[1].second.sizes(), torch::IntArrayRef({0, s.D, s.N}));
    for (const auto& [name, tensor] : result) EXPECT_EQ(tensor.count_nonzero().item<int64_t>(), 0) << name;
  });
}

TEST(SelectiveScanSizes, ManyChannels) {
  for_each_device([&] {
    ScanCase s;
    s.B = 1, s.L = 3, s.D = 70'000, s.N = 2;
    const ScanArguments a = make_arguments(s);
    expect_near(run(kOperator, cast(a, torch::kFloat)), run(kComposite, a), kFloat32Forward, kFloat32Backward);
  });
}

TEST(SelectiveScanSizes, ManyRowsAndManyPackedSequences) {
  for_each_device([&] {
    ScanCase s;
    s.B = 70'000, s.L = 1, s.D = 3, s.N = 2;
    const ScanArguments rows = make_arguments(s);
    const NamedTensors batch = run(kOperator, cast(rows, torch::kFloat));
    expect_near(batch, run(kComposite, rows), kFloat32Forward, kFloat32Backward);

    ScanArguments one_row = rows;
    one_row.each([&](const std::string& name, torch::Tensor& t) {
      if (name != "initial_state" && t.dim() >= 3) t = t.transpose(0, 1);
    });
    one_row.options.cu_seqlens = torch::arange(s.B + 1, torch::kLong);
    NamedTensors packed = run(kOperator, cast(one_row, torch::kFloat));
    EXPECT_TRUE(same_bits(packed[0].second.transpose(0, 1), batch[0].second));
    EXPECT_TRUE(same_bits(packed[1].second, batch[1].second));
  });
}

// Inputs whose rows lie more than 2^31 elements apart in one allocation, of which only those rows are ever touched.
TEST(SelectiveScanSizes, OffsetsBeyond32Bits) {
  constexpr int64_t kFar = (int64_t{1} << 31) + 100;
  ScanCase s;
  s.N = 4;
  torch::Tensor base;
  try {
    base = torch::empty({kFar + 10'000}, torch::kBFloat16);
  } catch (const c10::Error&) {
    GTEST_SKIP() << "no memory for an allocation of 4.3 GB, of which some pages are used";
  }
  struct Strides {
    int64_t B, L, b, l;
  };
  for (const Strides& far : {Strides{2, 3, kFar, 100}, Strides{1, 2, 5'000, kFar}, Strides{1, 3, 5'000, kFar / 2}}) {
    s.B = far.B;
    s.L = far.L;
    const ScanArguments near = cast(make_arguments(s, torch::kBFloat16), torch::kBFloat16);
    ScanArguments a = near;
    int64_t offset = 0;
    const auto move = [&](torch::Tensor& t) {
      const int64_t width = t.numel() / (s.B * s.L);
      const std::vector<int64_t> shape = t.sizes().vec();
      torch::Tensor there = base.as_strided({s.B, s.L, width}, {far.b, far.l, 1}, offset);
      there.copy_(t.reshape({s.B, s.L, width}));
      t = t.dim() == 4 ? there.unsqueeze(2) : there;
      offset += 1'000;
    };
    move(a.u);
    move(a.delta);
    move(a.B);
    move(a.C);
    move(*a.options.z);
    expect_same_bits(run(kOperator, a), run(kOperator, near));
    // The gradient of y lies as far apart.
    const torch::Tensor dy = base.as_strided({s.B, s.L, s.D}, {far.b, far.l, 1}, offset);
    dy.copy_(near.u);
    const NamedTensors leaves = make_leaves(a);
    const torch::Tensor y = std::get<0>(call(kOperator, a));
    const auto grad = [&](const torch::Tensor& g) { return torch::autograd::grad({y}, {a.u, a.A}, {g}, true); };
    const auto got = grad(dy), expected = grad(near.u);
    EXPECT_TRUE(same_bits(got[0], expected[0]) && same_bits(got[1], expected[1]));
  }
}

}  // namespace
}  // namespace adder::tests
