// Typed loads and stores and the elementary functions of simd-inl.h, on every instruction set that this processor has.
#include <bit>
#include <sstream>
#include <string>

#include "tests/kernels/compare.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/kernels/simd_test.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/simd-inl.h"
#include "tests/kernels/every_target.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// The counts are multiples of every vector length.
template <typename T>
void widen(const T* from, Accumulator<T>* to, int64_t count) {
  const Tag<T> d;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) hn::StoreU(load_as(d, from + i), d, to + i);
}
template <typename T>
void narrow(const Accumulator<T>* from, T* to, int64_t count) {
  const Tag<T> d;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) store_as(d, hn::LoadU(d, from + i), to + i);
}

// Row f of y (kFunctionCount, count) is function f of `kFunctions` below.
template <typename R>
void evaluate(const R* x, R* y, int64_t count) {
  const Tag<R> d;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    const auto v = hn::LoadU(d, x + i);
    R* to = y + i;
    const auto put = [&](const auto& value) {
      hn::StoreU(value, d, to);
      to += count;
    };
    auto slope = v, sine = v, cosine = v;
    put(exp2(d, v));
    put(exp(d, v));
    put(softplus(d, v));
    put(softplus(d, v, slope));
    put(slope);
    put(sigmoid(d, v));
    put(silu(d, v));
    put(silu_gradient(d, v));
    sincos(d, v, sine, cosine);
    put(sine);
    put(cosine);
  }
}

void widen_bf16(const bfloat16* from, float* to, int64_t count) {
  widen(from, to, count);
}
void widen_f16(const float16* from, float* to, int64_t count) {
  widen(from, to, count);
}
void narrow_bf16(const float* from, bfloat16* to, int64_t count) {
  narrow(from, to, count);
}
void narrow_f16(const float* from, float16* to, int64_t count) {
  narrow(from, to, count);
}
void evaluate_f32(const float* x, float* y, int64_t count) {
  evaluate(x, y, count);
}
void evaluate_f64(const double* x, double* y, int64_t count) {
  evaluate(x, y, count);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {
namespace {

HWY_EXPORT(widen_bf16);
HWY_EXPORT(widen_f16);
HWY_EXPORT(narrow_bf16);
HWY_EXPORT(narrow_f16);
HWY_EXPORT(evaluate_f32);
HWY_EXPORT(evaluate_f64);

constexpr size_t kStep = 64;  // lanes of the widest vector, several times

template <typename T>
std::vector<float> widen_all(std::vector<T> from) {
  const size_t count = from.size();
  from.resize((count + kStep - 1) / kStep * kStep);
  std::vector<float> to(from.size());
  const auto size = static_cast<int64_t>(from.size());
  if constexpr (std::is_same_v<T, bfloat16>)
    HWY_DYNAMIC_DISPATCH(widen_bf16)(from.data(), to.data(), size);
  else
    HWY_DYNAMIC_DISPATCH(widen_f16)(from.data(), to.data(), size);
  to.resize(count);
  return to;
}

template <typename T>
std::vector<T> narrow_all(std::vector<float> from) {
  const size_t count = from.size();
  from.resize((count + kStep - 1) / kStep * kStep);
  std::vector<T> to(from.size());
  const auto size = static_cast<int64_t>(from.size());
  if constexpr (std::is_same_v<T, bfloat16>)
    HWY_DYNAMIC_DISPATCH(narrow_bf16)(from.data(), to.data(), size);
  else
    HWY_DYNAMIC_DISPATCH(narrow_f16)(from.data(), to.data(), size);
  to.resize(count);
  return to;
}

// What the bits mean: sign, exponent, fraction, as IEEE 754 has them.
template <typename T>
constexpr int kFractionBits = std::is_same_v<T, bfloat16> ? 7 : 10;
template <typename T>
constexpr uint16_t kInfinity = std::is_same_v<T, bfloat16> ? 0x7F80 : 0x7C00;

template <typename T>
double meaning(uint16_t bits) {
  constexpr int kFraction = kFractionBits<T>, kBias = std::is_same_v<T, bfloat16> ? 127 : 15;
  const int magnitude = bits & 0x7FFF, exponent = magnitude >> kFraction, fraction = magnitude & ((1 << kFraction) - 1);
  double value = magnitude > kInfinity<T>    ? std::numeric_limits<double>::quiet_NaN()
                 : magnitude == kInfinity<T> ? std::numeric_limits<double>::infinity()
                 : exponent == 0             ? std::ldexp(fraction, 1 - kBias - kFraction)
                                             : std::ldexp((1 << kFraction) + fraction, exponent - kBias - kFraction);
  return bits & 0x8000 ? -value : value;
}

template <typename T>
std::vector<T> every_pattern() {
  std::vector<T> all(65536);
  for (uint32_t bits = 0; bits < 65536; ++bits) all[bits] = {static_cast<uint16_t>(bits)};
  return all;
}

// Tells of the first few wrong values, and how many there are.
class Wrong {
 public:
  explicit Wrong(std::string what) : what_(std::move(what)) {}
  ~Wrong() { EXPECT_EQ(count_, 0) << what_; }
  template <typename... Parts>
  void at(const Parts&... parts) {
    if (++count_ > 3) return;
    std::ostringstream text;
    (text << ... << parts);
    ADD_FAILURE() << what_ << ": " << text.str();
  }

 private:
  std::string what_;
  int64_t count_ = 0;
};

template <typename T>
void expect_wide(const char* what, const std::vector<float>& wide) {
  Wrong wrong(what);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const double expected = meaning<T>(static_cast<uint16_t>(bits));
    const bool same = std::isnan(expected) ? std::isnan(wide[bits])
                                           : wide[bits] == expected && std::signbit(wide[bits]) == (bits >> 15 != 0);
    if (!same) wrong.at("bits ", bits, " are ", wide[bits], ", not ", expected);
  }
}

template <typename T>
void expect_patterns(const char* what, const std::vector<T>& got) {
  Wrong wrong(what);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const bool nan = (bits & 0x7FFF) > kInfinity<T>;
    const bool same = nan ? (got[bits].bits & 0x7FFF) > kInfinity<T> : got[bits].bits == bits;
    if (!same) wrong.at("bits ", bits, " came back as ", got[bits].bits);
  }
}

// float32 values on, just below and just above every middle between two neighbours, and what each rounds to.
template <typename T>
void ties(std::vector<float>& values, std::vector<uint16_t>& expected) {
  for (uint16_t low = 0; low < kInfinity<T>; ++low) {
    // The step beyond the largest number is as wide as the one before; what reaches its middle becomes infinity.
    const auto high = static_cast<uint16_t>(low + 1);
    const double below = meaning<T>(low);
    const double above = high == kInfinity<T> ? below + (below - meaning<T>(low - 1)) : meaning<T>(high);
    const auto middle = static_cast<float>((below + above) / 2);
    ASSERT_EQ(middle, (below + above) / 2);
    const uint16_t even = low % 2 == 0 ? low : high;
    for (const uint16_t sign : {0, 0x8000}) {
      const auto add = [&](float value, uint16_t bits) {
        values.push_back(sign ? -value : value);
        expected.push_back(sign | bits);
      };
      add(middle, even);
      add(std::nextafter(middle, 0.0f), low);
      add(std::nextafter(middle, std::numeric_limits<float>::infinity()), high);
    }
  }
}

template <typename T>
void expect_rounded(const char* what, const std::vector<T>& got, const std::vector<float>& values,
                    const std::vector<uint16_t>& expected) {
  Wrong wrong(what);
  for (size_t i = 0; i < got.size(); ++i)
    if (got[i].bits != expected[i]) wrong.at(std::hexfloat, values[i], " became ", got[i].bits, ", not ", expected[i]);
}

template <typename T>
std::vector<float> scalar_widen(const std::vector<T>& from) {
  std::vector<float> to;
  for (const T x : from) to.push_back(to_float(x));
  return to;
}
template <typename T>
std::vector<T> scalar_narrow(const std::vector<float>& from) {
  std::vector<T> to;
  for (const float x : from) to.push_back(from_float<T>(x));
  return to;
}

// float32 NaNs whose payload lies in the bits that are cut off alone, which must not become infinities.
std::vector<float> nans() {
  std::vector<float> values;
  for (const uint32_t bits :
       {0x7F800001u, 0x7F801000u, 0x7F80FFFFu, 0x7FC00000u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu})
    values.push_back(std::bit_cast<float>(bits));
  return values;
}

template <typename T>
class NarrowTypes : public testing::Test {};
using Narrow = testing::Types<bfloat16, float16>;
TYPED_TEST_SUITE(NarrowTypes, Narrow);

TYPED_TEST(NarrowTypes, EveryPatternComesBack) {
  using T = TypeParam;
  const std::vector<T> all = every_pattern<T>();
  const std::vector<float> wide = scalar_widen(all);
  expect_wide<T>("to_float", wide);
  expect_patterns("from_float", scalar_narrow<T>(wide));
  tests::on_every_target([&] {
    expect_wide<T>("load_as", widen_all(all));
    expect_patterns("store_as", narrow_all<T>(widen_all(all)));
  });
}

TYPED_TEST(NarrowTypes, RoundToTheNearestAndToEven) {
  using T = TypeParam;
  std::vector<float> values;
  std::vector<uint16_t> expected;
  ties<T>(values, expected);
  expect_rounded("from_float", scalar_narrow<T>(values), values, expected);
  tests::on_every_target([&] { expect_rounded("store_as", narrow_all<T>(values), values, expected); });
}

TYPED_TEST(NarrowTypes, NanStaysNan) {
  using T = TypeParam;
  const auto expect_nans = [](const std::vector<T>& got) {
    for (const T x : got) EXPECT_GT(x.bits & 0x7FFF, kInfinity<T>);
  };
  expect_nans(scalar_narrow<T>(nans()));
  tests::on_every_target([&] { expect_nans(narrow_all<T>(nans())); });
}

// Of long doubles, whose errors are far below those that are measured.
using Real = long double;
Real sigmoid_of(Real x) {
  return 1 / (1 + std::exp(-x));
}
Real softplus_of(Real x) {
  return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x));
}
Real silu_gradient_of(Real x) {
  if (std::isinf(x)) return x > 0 ? 1 : 0;
  return sigmoid_of(x) * (1 + x * sigmoid_of(-x));
}

struct Function {
  const char* name;
  Real (*value)(Real);
  // What the error is relative to; its own value where it has no roots.
  Real (*scale)(Real);
};

constexpr Function kFunctions[] = {
    {"exp2", [](Real x) { return std::exp2(x); }, [](Real x) { return std::exp2(x); }},
    {"exp", [](Real x) { return std::exp(x); }, [](Real x) { return std::exp(x); }},
    {"softplus", softplus_of, softplus_of},
    {"softplus with its slope", softplus_of, softplus_of},
    {"slope of softplus", sigmoid_of, sigmoid_of},
    {"sigmoid", sigmoid_of, sigmoid_of},
    {"silu", [](Real x) { return x * sigmoid_of(x); }, [](Real x) { return std::fabs(x) * sigmoid_of(x); }},
    // 1 - sigmoid(x) cancels: an error of sigmoid counts x times, until it is 1 for good.
    {"silu_gradient", silu_gradient_of,
     [](Real x) { return sigmoid_of(x) * (1 + std::min(std::fabs(x), x > 0 ? Real{40} : std::fabs(x))); }},
    {"sine", [](Real x) { return std::sin(x); }, [](Real) { return Real{1}; }},
    {"cosine", [](Real x) { return std::cos(x); }, [](Real) { return Real{1}; }},
};
constexpr size_t kFunctionCount = std::size(kFunctions), kExponentials = 2;

template <typename R>
std::vector<R> arguments() {
  using Limits = std::numeric_limits<R>;
  std::vector<R> values{Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()};
  std::vector<double> magnitudes{0, 1e-8, 1, 20, 88, 1e4};
  for (const double beyond : {-0.6, -0.4, 0.4}) {  // around where 2^x and e^x leave the range
    magnitudes.push_back(Limits::max_exponent + beyond);
    magnitudes.push_back((Limits::max_exponent + beyond) * M_LN2);
  }
  for (const double magnitude : magnitudes)
    for (const int sign : {1, -1}) values.push_back(static_cast<R>(sign * magnitude));
  std::mt19937_64 random(3);
  const double widest = Limits::max_exponent * 0.68;
  std::uniform_real_distribution<double> even(-widest, widest), logarithm(-20, 9);
  for (int i = 0; i < 5000; ++i) {
    values.push_back(static_cast<R>(even(random)));
    values.push_back(static_cast<R>((i % 2 == 0 ? 1 : -1) * std::exp(logarithm(random))));
  }
  return values;
}

template <typename R>
bool is_good(const Function& function, R x, R got, double tolerance) {
  using Limits = std::numeric_limits<R>;
  const Real exact = function.value(x);
  const R expected = static_cast<R>(exact);
  // silu(-inf) is -inf * 0 in the formula; its limit is as good.
  if (std::isnan(expected)) return std::isnan(got) || (std::isinf(x) && x < 0 && got == 0);
  if (std::isinf(expected) || std::isinf(x)) return got == expected;
  // In the last half power of two before the range ends the power's factor is infinite already.
  if (std::isinf(got)) return got > 0 && exact >= std::exp2(Real{Limits::max_exponent - 0.5});
  // Below the normal range a factor may have become 0.
  const Real floor = Limits::min() * std::max(Real{1}, std::fabs(Real{x}));
  return std::fabs(got - exact) <= tolerance * function.scale(x) + floor;
}

template <typename R>
void compare_functions(double tolerance) {
  std::vector<R> x = arguments<R>();
  const size_t used = x.size(), count = (used + kStep - 1) / kStep * kStep;
  x.resize(count);
  std::vector<R> y(kFunctionCount * count);
  if constexpr (sizeof(R) == 4)
    HWY_DYNAMIC_DISPATCH(evaluate_f32)(x.data(), y.data(), static_cast<int64_t>(count));
  else
    HWY_DYNAMIC_DISPATCH(evaluate_f64)(x.data(), y.data(), static_cast<int64_t>(count));
  for (size_t f = 0; f < kFunctionCount; ++f) {
    Wrong wrong(kFunctions[f].name);
    for (size_t i = 0; i < used; ++i) {
      const R got = y[f * count + i];
      if (!is_good(kFunctions[f], x[i], got, tolerance))
        wrong.at("of ", x[i], " is ", got, ", not ", kFunctions[f].value(x[i]));
      if (f < kExponentials && x[i] == 0 && got != 1) wrong.at("of 0 is not exactly 1");
    }
  }
}

// The polynomial under all of them is known to 2e-7 and 2e-16; what is built on it may be off by 2.5 times as much.
TEST(ElementaryFunctions, AgreeWithTheStandardLibrary) {
  tests::on_every_target([] {
    compare_functions<float>(5e-7);
    compare_functions<double>(5e-16);
  });
}

}  // namespace
}  // namespace adder::kernels
#endif
