// Elementary functions and typed loads and stores for Highway vectors, compiled once for each instruction set.
// Highway's own Exp and bf16 demotion are of no use here: Exp(NaN) is 0, DemoteTo(bf16) truncates.
#if defined(ADDER_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADDER_KERNELS_SIMD_INL_H_
#undef ADDER_KERNELS_SIMD_INL_H_
#else
#define ADDER_KERNELS_SIMD_INL_H_
#endif

#include <cmath>
#include <cstring>
#include <limits>

#include "adder/kernels/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// x86 with AVX2 or more: Max and Min give their second argument where one of them is NaN, and float16 is converted by
// instructions. The other targets, emulations among them, differ in both.
#undef ADDER_X86_VECTORS
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2
#define ADDER_X86_VECTORS 1
#else
#define ADDER_X86_VECTORS 0
#endif

// Vectors of the accumulator type, of full width.
template <typename T>
using Tag = hn::ScalableTag<Accumulator<T>>;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V constant(D d, double x) {
  return hn::Set(d, static_cast<hn::TFromD<D>>(x));
}

template <class D>
constexpr bool is_float(D) {
  return sizeof(hn::TFromD<D>) == 4;
}

// Horner's rule, coefficients from the lowest order up.
template <class D, class V, size_t kCount>
HWY_INLINE V polynomial(D d, V x, const double (&coefficients)[kCount]) {
  V sum = constant(d, coefficients[kCount - 1]);
  for (size_t i = kCount - 1; i-- > 0;) sum = hn::MulAdd(sum, x, constant(d, coefficients[i]));
  return sum;
}

// 2^r for |r| <= 0.5, exactly 1 at 0; relative error 2e-7 (float), 2e-16 (double).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_fraction(D d, V r) {
  static constexpr double kFloat[] = {0.693147181, 0.24022349, 0.0555038101, 0.00966636852, 0.00133813025};
  static constexpr double kDouble[] = {0.69314718055994529,    0.24022650695910097,    0.055504108664824317,
                                       0.00961812910760689,    0.0013333558145807931,  0.0001540353044173782,
                                       1.5252734386536174e-05, 1.3215442585663254e-06, 1.0177839797817438e-07,
                                       7.0725865261936415e-09, 4.4873427913050031e-10};
  const V one = constant(d, 1);
  if constexpr (is_float(d))
    return hn::MulAdd(polynomial(d, r, kFloat), r, one);
  else
    return hn::MulAdd(polynomial(d, r, kDouble), r, one);
}

// x rounded to the nearest integer, for |x| < 2^22 (float).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V round_small(D d, V x) {
  const V magic = constant(d, is_float(d) ? 12582912.0 : 6755399441055744.0);  // 1.5 * 2^23, 1.5 * 2^52
  return hn::Sub(hn::Add(x, magic), magic);
}

// x limited to [-limit, limit], keeping NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V clamp(D d, V x, double limit) {
  const V clamped = hn::Min(constant(d, limit), hn::Max(constant(d, -limit), x));
#if ADDER_X86_VECTORS
  return clamped;
#else
  return hn::IfThenElse(hn::IsNaN(x), x, clamped);
#endif
}

// m * 2^n for whole n; results below the normal range become 0. Above it they are infinite, without AVX-512 from
// 2^127.5 (2^1023.5) on.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V scale_by_power(D d, V m, V n) {
#if HWY_TARGET == HWY_AVX3
  (void)d;
  if constexpr (is_float(d))
    return V{_mm512_scalef_ps(m.raw, n.raw)};
  else
    return V{_mm512_scalef_pd(m.raw, n.raw)};
#else
  constexpr double kBias = is_float(d) ? 127 : 1023;
  constexpr int kMantissa = is_float(d) ? 23 : 52;
  // Max and Min keep a NaN in their second argument; the sum's low bits are the integer, moved into the exponent.
  const V clamped = hn::Min(constant(d, kBias + 1), hn::Max(constant(d, -kBias), n));
  const V biased = hn::Add(clamped, constant(d, (is_float(d) ? 12582912.0 : 6755399441055744.0) + kBias));
  const hn::RebindToUnsigned<D> du;
  const V power = hn::BitCast(d, hn::ShiftLeft<kMantissa>(hn::BitCast(du, biased)));
  return hn::Mul(m, power);
#endif
}

// 2^x; NaN stays NaN, 2^inf = inf, 2^-inf = 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2(D d, V x) {
#if HWY_TARGET == HWY_AVX3
  // vreduce gives x - round(x) (0 for infinities) in one instruction.
  constexpr int kNearest = 8;
  V r;
  if constexpr (is_float(d))
    r = V{_mm512_reduce_ps(x.raw, kNearest)};
  else
    r = V{_mm512_reduce_pd(x.raw, kNearest)};
  return scale_by_power(d, exp2_fraction(d, r), hn::Sub(x, r));
#else
  const V clamped = clamp(d, x, is_float(d) ? 300 : 3000);  // where round_small is exact
  const V n = round_small(d, clamped);
  return scale_by_power(d, exp2_fraction(d, hn::Sub(clamped, n)), n);
#endif
}

// e^x, with the argument reduced in two parts so that large |x| keep their accuracy.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  constexpr double kLog2e = 1.4426950408889634074;
  constexpr double kHigh = is_float(d) ? 0.693359375 : 0.693147180369123816490;
  constexpr double kLow = is_float(d) ? -2.12194440054690583e-4 : 1.90821492927058770002e-10;
  const V clamped = clamp(d, x, is_float(d) ? 200 : 2000);
  const V n = round_small(d, hn::Mul(clamped, constant(d, kLog2e)));
  const V r = hn::NegMulAdd(n, constant(d, kLow), hn::NegMulAdd(n, constant(d, kHigh), clamped));
  return scale_by_power(d, exp2_fraction(d, hn::Mul(r, constant(d, kLog2e))), n);
}

// 1 / x for 1 <= x <= 3; error at most 2e-16 (double), 1.2e-7 (float).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reciprocal(D d, V x) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (is_float(d)) {  // an approximation to 14 bits and one Newton step: a third of a division's time
    const V guess = hn::ApproximateReciprocal(x);
    return hn::MulAdd(guess, hn::NegMulAdd(x, guess, constant(d, 1)), guess);
  }
#endif
  return hn::Div(constant(d, 1), x);
}

// log(1 + t) for 0 <= t <= 1, as 2 artanh(t / (2 + t)).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V log1p_unit(D d, V t) {
  static constexpr double kFloat[] = {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15};
  static constexpr double kDouble[] = {2.0,      2.0 / 3,  2.0 / 5,  2.0 / 7,  2.0 / 9,  2.0 / 11,
                                       2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21, 2.0 / 23,
                                       2.0 / 25, 2.0 / 27, 2.0 / 29, 2.0 / 31, 2.0 / 33};
  const V s = hn::Mul(t, reciprocal(d, hn::Add(t, constant(d, 2))));
  const V s2 = hn::Mul(s, s);
  if constexpr (is_float(d))
    return hn::Mul(s, polynomial(d, s2, kFloat));
  else
    return hn::Mul(s, polynomial(d, s2, kDouble));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus(D d, V x) {
  const V tail = log1p_unit(d, exp(d, hn::Neg(hn::Abs(x))));
  return hn::Add(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x), tail);
}

// 1 / (1 + e^-x), given e^-|x|.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid_from(D d, V x, V e) {
  const V r = reciprocal(d, hn::Add(constant(d, 1), e));
  return hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Mul(e, r), r);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  return sigmoid_from(d, x, exp(d, hn::Neg(hn::Abs(x))));
}

// softplus(x) and its derivative, which is sigmoid(x).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus(D d, V x, V& slope) {
  const V e = exp(d, hn::Neg(hn::Abs(x)));
  slope = sigmoid_from(d, x, e);
  return hn::Add(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x), log1p_unit(d, e));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu(D d, V x) {
  return hn::Mul(x, sigmoid(d, x));
}

// d silu(x) / dx, given s = sigmoid(x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu_gradient_from(D d, V x, V s) {
  const V rest = hn::NegMulAdd(s, hn::Mul(x, s), hn::Mul(x, s));  // x s (1 - s)
  // At -inf and +inf the product is inf * 0; the limits are 0 and 1, which s has.
  return hn::Add(s, hn::IfThenElse(hn::IsInf(x), hn::Zero(d), rest));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V silu_gradient(D d, V x) {
  return silu_gradient_from(d, x, sigmoid(d, x));
}

// sin(x) and cos(x). Arguments beyond 2^13 (float) or 2^20 (double) go through the standard library, one at a time.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void sincos(D d, V x, V& sine, V& cosine) {
  using T = hn::TFromD<D>;
  const V limit = constant(d, is_float(d) ? 8192 : 1048576);
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Le(hn::Abs(x), limit)))) {
    HWY_ALIGN T lanes[hn::MaxLanes(D())], s[hn::MaxLanes(D())], c[hn::MaxLanes(D())];
    hn::Store(x, d, lanes);
    for (size_t i = 0; i < hn::Lanes(d); ++i) {
      s[i] = std::sin(lanes[i]);
      c[i] = std::cos(lanes[i]);
    }
    sine = hn::Load(d, s);
    cosine = hn::Load(d, c);
    return;
  }
  // x = n pi/2 + r; three parts of pi/2 keep n times each part exact.
  const V n = round_small(d, hn::Mul(x, constant(d, 0.63661977236758134308)));
  V r;
  if constexpr (is_float(d)) {
    r = hn::NegMulAdd(n, constant(d, 1.5703125), x);
    r = hn::NegMulAdd(n, constant(d, 4.83751296997070312e-4), r);
    r = hn::NegMulAdd(n, constant(d, 7.54978995489188216e-8), r);
  } else {
    r = hn::NegMulAdd(n, constant(d, 1.57079632673412561417e+00), x);
    r = hn::NegMulAdd(n, constant(d, 6.07710050630396597660e-11), r);
    r = hn::NegMulAdd(n, constant(d, 2.02226624879595063154e-21), r);
  }
  static constexpr double kSine[] = {1.0,
                                     -1.0 / 6,
                                     1.0 / 120,
                                     -1.0 / 5040,
                                     1.0 / 362880.,
                                     -1.0 / 39916800.,
                                     1.0 / 6227020800.,
                                     -1.0 / 1307674368000.,
                                     1.0 / 355687428096000.};
  static constexpr double kCosine[] = {1.0,
                                       -1.0 / 2,
                                       1.0 / 24,
                                       -1.0 / 720,
                                       1.0 / 40320.,
                                       -1.0 / 3628800.,
                                       1.0 / 479001600.,
                                       -1.0 / 87178291200.,
                                       1.0 / 20922789888000.,
                                       -1.0 / 6402373705728000.};
  static constexpr double kSineFloat[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880.};
  static constexpr double kCosineFloat[] = {1.0, -1.0 / 2, 1.0 / 24, -1.0 / 720, 1.0 / 40320., -1.0 / 3628800.};
  const V r2 = hn::Mul(r, r);
  V s, c;
  if constexpr (is_float(d)) {
    s = hn::Mul(r, polynomial(d, r2, kSineFloat));
    c = polynomial(d, r2, kCosineFloat);
  } else {
    s = hn::Mul(r, polynomial(d, r2, kSine));
    c = polynomial(d, r2, kCosine);
  }
  const V magic = constant(d, is_float(d) ? 12582912.0 : 6755399441055744.0);
  const hn::RebindToUnsigned<D> du;
  const auto quadrant = hn::BitCast(du, hn::Add(n, magic));
  const auto one = hn::Set(du, 1), two = hn::Set(du, 2);
  const auto odd = hn::MaskFromVec(hn::BitCast(d, hn::VecFromMask(du, hn::Eq(hn::And(quadrant, one), one))));
  constexpr int kSign = sizeof(T) * 8 - 2;
  const V sine_sign = hn::BitCast(d, hn::ShiftLeft<kSign>(hn::And(quadrant, two)));
  const V cosine_sign = hn::BitCast(d, hn::ShiftLeft<kSign>(hn::And(hn::Add(quadrant, one), two)));
  sine = hn::Xor(hn::IfThenElse(odd, c, s), sine_sign);
  cosine = hn::Xor(hn::IfThenElse(odd, s, c), cosine_sign);
}

// A full vector of T at p as accumulator values.
template <class D>
HWY_INLINE hn::Vec<D> load_as(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load_as(D d, const double* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> load_as(D d, const bfloat16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)))));
}
template <class D>
HWY_INLINE hn::Vec<D> load_as(D d, const float16* p) {
#if ADDER_X86_VECTORS
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#else  // an emulated PromoteTo makes numbers of infinities and NaNs
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  for (size_t i = 0; i < hn::Lanes(d); ++i) lanes[i] = to_float(p[i]);
  return hn::Load(d, lanes);
#endif
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_as(D d, V v, float* p) {
  hn::StoreU(v, d, p);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_as(D d, V v, double* p) {
  hn::StoreU(v, d, p);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_as(D d, V v, bfloat16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(du, v);
  const auto tie = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(tie, hn::Set(du, 0x7FFF))));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
  const auto is_nan = hn::MaskFromVec(hn::BitCast(du, hn::VecFromMask(d, hn::IsNaN(v))));
  const auto chosen = hn::IfThenElse(is_nan, quiet, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, chosen)), d16, reinterpret_cast<uint16_t*>(p));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void store_as([[maybe_unused]] D d, V v, float16* p) {
#if ADDER_X86_VECTORS
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, reinterpret_cast<hwy::float16_t*>(p));
#else  // an emulated DemoteTo truncates
  HWY_ALIGN float lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) p[i] = from_float<float16>(lanes[i]);
#endif
}

// `count` values (at most a vector) with a stride, the rest of the vector 0.
template <class D, typename T>
HWY_INLINE hn::Vec<D> load_row(D d, const T* p, int64_t stride, int64_t count) {
  if (HWY_LIKELY(stride == 1 && count >= static_cast<int64_t>(hn::Lanes(d)))) return load_as(d, p);
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(D())] = {};
  const int64_t last = HWY_MIN(count, static_cast<int64_t>(hn::Lanes(d)));
  for (int64_t i = 0; i < last; ++i) lanes[i] = to_float(p[i * stride]);
  return hn::Load(d, lanes);
}

template <class D, typename T, class V = hn::Vec<D>>
HWY_INLINE void store_row(D d, V v, T* p, int64_t stride, int64_t count) {
  if (HWY_LIKELY(stride == 1 && count >= static_cast<int64_t>(hn::Lanes(d)))) return store_as(d, v, p);
  HWY_ALIGN hn::TFromD<D> lanes[hn::MaxLanes(D())];
  hn::Store(v, d, lanes);
  const int64_t last = HWY_MIN(count, static_cast<int64_t>(hn::Lanes(d)));
  for (int64_t i = 0; i < last; ++i) p[i * stride] = from_float<T>(lanes[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#endif
