// The two walks of the backward scan over one chunk: forward to recompute the states, then backward in time.
#if defined(ADDER_KERNELS_SELECTIVE_SCAN_BWD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADDER_KERNELS_SELECTIVE_SCAN_BWD_INL_H_
#undef ADDER_KERNELS_SELECTIVE_SCAN_BWD_INL_H_
#else
#define ADDER_KERNELS_SELECTIVE_SCAN_BWD_INL_H_
#endif

#include "adder/kernels/selective_scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

constexpr int kStatesAtOnce = 4;

// Pointers into one vector of channels of a tile: rows over time are kUnit apart, planes of states too.
template <typename R>
struct ScanColumn {
  int64_t steps, planes;
  const R *delta, *du, *dy;
  const R *A, *B_const, *C_const;
  const R *B, *C;   // rows of `planes`; null where constant
  const R* border;  // the state before the chunk
  R *s, *q, *y;     // sum of dh B, sum of d(delta A) A log2(e), sum of C h
  R* carry;         // d h at the end of the chunk from what follows; on return: at its beginning
  R *dA, *dB_const, *dC_const;
  R *a, *h;    // (steps, kStatesAtOnce * parts, lanes); h has one row more, its first is the state before the chunk
  R *dB, *dC;  // the shape of a: sums over the vectors of a block
  bool first;  // the first vector of the block sets dB and dC, the others add
};

template <class D, typename R, class V>
HWY_INLINE void set_or_add(D d, V v, bool set, R* to) {
  hn::Store(set ? v : hn::Add(hn::Load(d, to), v), d, to);
}

// kN real states n0, n0 + 1, ... with per-step B and C and Euler's rule. Pointers are copied to locals: stores through
// vectors may alias anything, and the members would be read again for each state.
template <int kN, bool kFirst, class D, typename R>
void scan_states_backward(D d, const ScanColumn<R>& p, int64_t n0) {
  using V = hn::Vec<D>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t slot = kN * lanes, planes = p.planes, steps = p.steps;
  const R *delta = p.delta, *du = p.du;
  R *a = p.a, *h = p.h;
  V A[kN], x[kN], dA[kN];
  HWY_UNROLL(16)
  for (int n = 0; n < kN; ++n) {
    A[n] = hn::Load(d, p.A + (n0 + n) * kUnit);
    x[n] = hn::LoadU(d, p.border + (n0 + n) * kUnit);
    hn::Store(x[n], d, h + n * lanes);
  }
  const R* B = p.B + n0;
  for (int64_t t = 0; t < steps; ++t, B += planes) {
    const V step = hn::Load(d, delta + t * kUnit), input = hn::Load(d, du + t * kUnit);
    HWY_UNROLL(16)
    for (int n = 0; n < kN; ++n) {
      const V decay = exp2(d, hn::Mul(step, A[n]));
      x[n] = hn::MulAdd(decay, x[n], hn::Mul(input, hn::Set(d, B[n])));
      hn::Store(decay, d, a + t * slot + n * lanes);
      hn::Store(x[n], d, h + (t + 1) * slot + n * lanes);
    }
  }
  V state[kN];
  HWY_UNROLL(16)
  for (int n = 0; n < kN; ++n) {
    state[n] = x[n];
    x[n] = hn::Load(d, p.carry + (n0 + n) * kUnit);
    dA[n] = hn::Load(d, p.dA + (n0 + n) * kUnit);
  }
  const R *dy = p.dy, *C = p.C + n0 + steps * planes;
  R *s = p.s, *q = p.q, *y = p.y, *dB = p.dB, *dC = p.dC;
  for (int64_t t = steps - 1; t >= 0; --t) {
    B -= planes;
    C -= planes;
    const V step = hn::Load(d, delta + t * kUnit), input = hn::Load(d, du + t * kUnit),
            gradient = hn::Load(d, dy + t * kUnit);
    V sum_s = hn::Load(d, s + t * kUnit), sum_q = hn::Load(d, q + t * kUnit), sum_y = hn::Load(d, y + t * kUnit);
    HWY_UNROLL(16)
    for (int n = 0; n < kN; ++n) {
      const int64_t at = t * slot + n * lanes;
      const V before = hn::Load(d, h + at), Cn = hn::Set(d, C[n]);
      const V dh = hn::MulAdd(gradient, Cn, x[n]);
      x[n] = hn::Mul(hn::Load(d, a + at), dh);
      const V dx = hn::Mul(x[n], before);  // the gradient of delta A
      sum_y = hn::MulAdd(Cn, state[n], sum_y);
      sum_s = hn::MulAdd(dh, hn::Set(d, B[n]), sum_s);
      sum_q = hn::MulAdd(dx, A[n], sum_q);
      dA[n] = hn::MulAdd(dx, step, dA[n]);
      if constexpr (kFirst) {
        hn::Store(hn::Mul(dh, input), d, dB + at);
        hn::Store(hn::Mul(gradient, state[n]), d, dC + at);
      } else {
        hn::Store(hn::MulAdd(dh, input, hn::Load(d, dB + at)), d, dB + at);
        hn::Store(hn::MulAdd(gradient, state[n], hn::Load(d, dC + at)), d, dC + at);
      }
      state[n] = before;
    }
    hn::Store(sum_s, d, s + t * kUnit);
    hn::Store(sum_q, d, q + t * kUnit);
    hn::Store(sum_y, d, y + t * kUnit);
  }
  HWY_UNROLL(16)
  for (int n = 0; n < kN; ++n) {
    hn::Store(x[n], d, p.carry + (n0 + n) * kUnit);
    hn::Store(dA[n], d, p.dA + (n0 + n) * kUnit);
  }
}

// Any one state. Gradients of complex numbers are d/dRe + i d/dIm.
template <bool kComplex, bool kZoh, class D, typename R>
void scan_state_backward(D d, const ScanColumn<R>& p, int64_t n) {
  using V = hn::Vec<D>;
  using Num = Number<V, kComplex>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t slot = (kComplex ? 2 : 1) * lanes;
  const auto load_slot = [&](const R* from, int64_t t) -> Num {
    if constexpr (kComplex)
      return {hn::Load(d, from + t * slot), hn::Load(d, from + t * slot + lanes)};
    else
      return {hn::Load(d, from + t * slot)};
  };
  const auto store_slot = [&](Num v, R* to, int64_t t) {
    hn::Store(v.re, d, to + t * slot);
    if constexpr (kComplex) hn::Store(v.im, d, to + t * slot + lanes);
  };
  const auto sum_slot = [&](Num v, R* to, int64_t t) {
    set_or_add(d, v.re, p.first, to + t * slot);
    if constexpr (kComplex) set_or_add(d, v.im, p.first, to + t * slot + lanes);
  };
  const auto B_at = [&](int64_t t) {
    return p.B != nullptr ? broadcast_number<kComplex>(d, p.B + t * p.planes, n)
                          : load_number<kComplex>(d, p.B_const, n);
  };
  const Num A = load_number<kComplex>(d, p.A, n);
  Num h = load_number<kComplex>(d, p.border, n);
  store_slot(h, p.h, 0);
  for (int64_t t = 0; t < p.steps; ++t) {
    const V step = hn::Load(d, p.delta + t * kUnit);
    const Num x = scale(A, step), a = exponential<kComplex>(d, x);
    Num b = B_at(t);
    if constexpr (kZoh) {
      Num phi, unused;
      zoh_factor<kComplex>(d, scale(x, constant(d, kLn2)), a, phi, unused);
      b = multiply(b, phi);
    }
    h = multiply_add(a, h, scale(b, hn::Load(d, p.du + t * kUnit)));
    store_slot(a, p.a, t);
    store_slot(h, p.h, t + 1);
  }
  Num carry = load_number<kComplex>(d, p.carry, n), dA = load_number<kComplex>(d, p.dA, n);
  Num dB_const = load_number<kComplex>(d, p.dB_const, n), dC_const = load_number<kComplex>(d, p.dC_const, n);
  for (int64_t t = p.steps - 1; t >= 0; --t) {
    const V step = hn::Load(d, p.delta + t * kUnit), du = hn::Load(d, p.du + t * kUnit),
            dy = hn::Load(d, p.dy + t * kUnit);
    const V weight = kComplex ? hn::Add(dy, dy) : dy;  // y = 2 Re(C h) where complex
    const Num a = load_slot(p.a, t), before = load_slot(p.h, t), B = B_at(t);
    const Num C =
        p.C != nullptr ? broadcast_number<kComplex>(d, p.C + t * p.planes, n) : load_number<kComplex>(d, p.C_const, n);
    const Num dh = add(scale(conjugate(C), weight), carry);
    const Num dC = scale(conjugate(h), weight);
    carry = multiply(conjugate(a), dh);
    Num b = B, db = scale(dh, du), dx = multiply(carry, conjugate(before));
    if constexpr (kZoh) {
      Num phi, dphi;
      zoh_factor<kComplex>(d, scale(scale(A, step), constant(d, kLn2)), a, phi, dphi);
      b = multiply(B, phi);
      dx = multiply_add(multiply(db, conjugate(B)), conjugate(dphi), dx);
      db = multiply(db, conjugate(phi));
    }
    const V product = real_product(C, h);
    hn::Store(hn::Add(hn::Load(d, p.y + t * kUnit), kComplex ? hn::Add(product, product) : product), d,
              p.y + t * kUnit);
    hn::Store(hn::Add(hn::Load(d, p.s + t * kUnit), real_product(dh, conjugate(b))), d, p.s + t * kUnit);
    hn::Store(hn::Add(hn::Load(d, p.q + t * kUnit), real_product(dx, conjugate(A))), d, p.q + t * kUnit);
    dA = add(dA, scale(dx, step));
    if (p.B != nullptr)
      sum_slot(db, p.dB, t);
    else
      dB_const = add(dB_const, db);
    if (p.C != nullptr)
      sum_slot(dC, p.dC, t);
    else
      dC_const = add(dC_const, dC);
    h = before;
  }
  store_number<kComplex>(d, carry, p.carry, n);
  store_number<kComplex>(d, dA, p.dA, n);
  store_number<kComplex>(d, dB_const, p.dB_const, n);
  store_number<kComplex>(d, dC_const, p.dC_const, n);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#endif
