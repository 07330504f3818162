// What the forward and the backward scan share: tiles of one chunk of time and one block of channels, in accumulator
// precision.
#if defined(ADDER_KERNELS_SELECTIVE_SCAN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADDER_KERNELS_SELECTIVE_SCAN_INL_H_
#undef ADDER_KERNELS_SELECTIVE_SCAN_INL_H_
#else
#define ADDER_KERNELS_SELECTIVE_SCAN_INL_H_
#endif

#include "adder/kernels/parallel.h"
#include "adder/kernels/scratch.h"
#include "adder/kernels/selective_scan_plan.h"
#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

constexpr int64_t kUnit = ScanPlan::kUnit;
constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

// A real or complex number in each lane, so that one text serves both.
template <class V, bool kComplex>
struct Number;
template <class V>
struct Number<V, false> {
  V re;
};
template <class V>
struct Number<V, true> {
  V re, im;
};

template <class V, bool kC>
HWY_INLINE Number<V, kC> scale(Number<V, kC> x, V s) {
  x.re = hn::Mul(x.re, s);
  if constexpr (kC) x.im = hn::Mul(x.im, s);
  return x;
}
template <class V, bool kC>
HWY_INLINE Number<V, kC> add(Number<V, kC> x, Number<V, kC> y) {
  x.re = hn::Add(x.re, y.re);
  if constexpr (kC) x.im = hn::Add(x.im, y.im);
  return x;
}
template <class V, bool kC>
HWY_INLINE Number<V, kC> subtract(Number<V, kC> x, Number<V, kC> y) {
  x.re = hn::Sub(x.re, y.re);
  if constexpr (kC) x.im = hn::Sub(x.im, y.im);
  return x;
}
template <class V, bool kC>
HWY_INLINE Number<V, kC> multiply(Number<V, kC> x, Number<V, kC> y) {
  if constexpr (kC)
    return {hn::NegMulAdd(x.im, y.im, hn::Mul(x.re, y.re)), hn::MulAdd(x.re, y.im, hn::Mul(x.im, y.re))};
  else
    return {hn::Mul(x.re, y.re)};
}
template <class V, bool kC>
HWY_INLINE Number<V, kC> conjugate(Number<V, kC> x) {
  if constexpr (kC) x.im = hn::Neg(x.im);
  return x;
}
// x y + z
template <class V, bool kC>
HWY_INLINE Number<V, kC> multiply_add(Number<V, kC> x, Number<V, kC> y, Number<V, kC> z) {
  if constexpr (kC)
    return {hn::NegMulAdd(x.im, y.im, hn::MulAdd(x.re, y.re, z.re)),
            hn::MulAdd(x.re, y.im, hn::MulAdd(x.im, y.re, z.im))};
  else
    return {hn::MulAdd(x.re, y.re, z.re)};
}
// Re(x y)
template <class V, bool kC>
HWY_INLINE V real_product(Number<V, kC> x, Number<V, kC> y) {
  if constexpr (kC)
    return hn::NegMulAdd(x.im, y.im, hn::Mul(x.re, y.re));
  else
    return hn::Mul(x.re, y.re);
}

// e^x for x = delta A, from x log2(e).
template <bool kC, class D, class V>
HWY_INLINE Number<V, kC> exponential(D d, Number<V, kC> x2) {
  const V magnitude = exp2(d, x2.re);
  if constexpr (kC) {
    V sine, cosine;
    sincos(d, hn::Mul(x2.im, constant(d, kLn2)), sine, cosine);
    return {hn::Mul(magnitude, cosine), hn::Mul(magnitude, sine)};
  } else {
    return {magnitude};
  }
}

// phi(x) = (e^x - 1) / x and its derivative, given e^x. Near 0 by their series: the closed forms lose all digits there.
template <bool kC, class D, class V>
HWY_INLINE void zoh_factor(D d, Number<V, kC> x, Number<V, kC> e, Number<V, kC>& phi, Number<V, kC>& dphi) {
  using Num = Number<V, kC>;
  constexpr int kTerms = is_float(d) ? 9 : 15;
  double factorial = 1;  // (k + 1)!
  double coefficients[kTerms + 1];
  for (int k = 0; k <= kTerms; ++k) {
    factorial *= k + 1;
    coefficients[k] = 1 / factorial;
  }
  Num series{}, dseries{};
  if constexpr (kC)
    series = {constant(d, coefficients[kTerms]), hn::Zero(d)};
  else
    series = {constant(d, coefficients[kTerms])};
  dseries = scale(series, constant(d, kTerms));
  for (int k = kTerms - 1; k >= 0; --k) {
    series = multiply(series, x);
    series.re = hn::Add(series.re, constant(d, coefficients[k]));
    if (k > 0) {
      dseries = multiply(dseries, x);
      dseries.re = hn::Add(dseries.re, constant(d, k * coefficients[k]));
    }
  }
  V norm = hn::Mul(x.re, x.re);
  if constexpr (kC) norm = hn::MulAdd(x.im, x.im, norm);
  const auto small = hn::Lt(norm, constant(d, 0.25));
  Num inverse;
  if constexpr (kC) {
    const V reciprocal = hn::Div(constant(d, 1), norm);
    inverse = scale(conjugate(x), reciprocal);
  } else {
    inverse = {hn::Div(constant(d, 1), x.re)};
  }
  Num minus_one = e;
  minus_one.re = hn::Sub(e.re, constant(d, 1));
  const Num closed = multiply(minus_one, inverse);
  const Num dclosed = multiply(subtract(e, closed), inverse);
  phi.re = hn::IfThenElse(small, series.re, closed.re);
  dphi.re = hn::IfThenElse(small, dseries.re, dclosed.re);
  if constexpr (kC) {
    phi.im = hn::IfThenElse(small, series.im, closed.im);
    dphi.im = hn::IfThenElse(small, dseries.im, dclosed.im);
  }
}

// Planes of one unit of channels: plane p of unit v starts at (v * planes + p) * kUnit. Complex: planes 2 n and 2 n
// + 1.
template <bool kC, class D, typename R>
HWY_INLINE Number<hn::Vec<D>, kC> load_number(D d, const R* planes, int64_t n) {
  if constexpr (kC)
    return {hn::LoadU(d, planes + 2 * n * kUnit), hn::LoadU(d, planes + (2 * n + 1) * kUnit)};
  else
    return {hn::LoadU(d, planes + n * kUnit)};
}
template <bool kC, class D, typename R>
HWY_INLINE void store_number(D d, Number<hn::Vec<D>, kC> x, R* planes, int64_t n) {
  if constexpr (kC) {
    hn::Store(x.re, d, planes + 2 * n * kUnit);
    hn::Store(x.im, d, planes + (2 * n + 1) * kUnit);
  } else {
    hn::Store(x.re, d, planes + n * kUnit);
  }
}
// The same number in every lane, from a row of per-step values.
template <bool kC, class D, typename R>
HWY_INLINE Number<hn::Vec<D>, kC> broadcast_number(D d, const R* row, int64_t n) {
  if constexpr (kC)
    return {hn::Set(d, row[2 * n]), hn::Set(d, row[2 * n + 1])};
  else
    return {hn::Set(d, row[n])};
}

// The channels of one block.
struct BlockChannels {
  int64_t group, first, count, first_unit, units;

  BlockChannels(const ScanPlan& plan, int64_t block) {
    group = block / plan.group_blocks;
    const int64_t unit_in_group = block % plan.group_blocks * plan.block_units;
    units = HWY_MIN(plan.block_units, plan.group_units - unit_in_group);
    first_unit = group * plan.group_units + unit_in_group;
    first = group * plan.group_channels + unit_in_group * kUnit;
    count = HWY_MIN(units * kUnit, plan.group_channels - unit_in_group * kUnit);
  }
};

// Asks for the channel values of the next chunk while this one is computed, a part at a time: a block's rows lie a page
// apart, so the processor does not foresee them.
struct NextChunk {
  const BlockChannels& block;
  const SequenceRows& rows;
  int64_t start, steps;  // steps = 0: there is none

  // From part `first` to before `last`, of `parts` in all.
  template <typename... Ts>
  HWY_INLINE void prefetch(int64_t first, int64_t last, int64_t parts, const View3<Ts>&... views) const {
    for (int64_t j = steps * first / parts; j < steps * last / parts; ++j)
      (prefetch_row(views, rows.time(start + j)), ...);
  }

 private:
  template <typename T>
  HWY_INLINE void prefetch_row(const View3<T>& view, int64_t t) const {
    if (view.data == nullptr || view.d != 1) return;
    const auto* row = reinterpret_cast<const char*>(view.data + rows.b * view.b + t * view.l + block.first);
    constexpr int kLine = 64, kRead = 0, kIntoL2 = 2;
    for (int64_t byte = 0; byte < block.count * static_cast<int64_t>(sizeof(T)); byte += kLine)
      __builtin_prefetch(row + byte, kRead, kIntoL2);
  }
};

// (D, N) values into planes; channels past the end are 0.
template <typename R>
void planes_from_matrix(const BlockChannels& block, bool complex, int64_t state, View2<const R> from, R factor,
                        R* planes) {
  const int64_t parts = complex ? 2 : 1, rows = state * parts;
  for (int64_t unit = 0; unit < block.units; ++unit)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t lane = 0; lane < kUnit; ++lane) {
        const int64_t c = unit * kUnit + lane;
        const int64_t offset = ((block.first + c) * from.row + row / parts * from.column) * parts + row % parts;
        planes[(unit * rows + row) * kUnit + lane] = c < block.count ? from.data[offset] * factor : R(0);
      }
}

// planes += or = into (D, N) contiguous.
template <typename R>
void matrix_from_planes(const BlockChannels& block, int64_t rows, const R* planes, R* to) {
  for (int64_t c = 0; c < block.count; ++c)
    for (int64_t row = 0; row < rows; ++row)
      to[(block.first + c) * rows + row] = planes[(c / kUnit * rows + row) * kUnit + c % kUnit];
}

// A contiguous (D, N) state, null: zeros.
template <typename R>
void planes_from_state(const BlockChannels& block, int64_t rows, const R* from, R* planes) {
  std::memset(planes, 0, sizeof(R) * block.units * rows * kUnit);
  if (from == nullptr) return;
  for (int64_t c = 0; c < block.count; ++c)
    for (int64_t row = 0; row < rows; ++row)
      planes[(c / kUnit * rows + row) * kUnit + c % kUnit] = from[(block.first + c) * rows + row];
}

// to[i] = the sum of the lanes of vector i, for `count` vectors that lie one after another.
template <class D, typename R>
HWY_INLINE void sum_lanes(D d, const R* vectors, int64_t count, R* to) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  if constexpr (is_float(d)) {
    const hn::Repartition<double, D> d64;
    const hn::CappedTag<float, 4> d4;
    for (; i + 4 <= count; i += 4) {  // transpose four vectors into quarters that hold the four sums side by side
      const R* v = vectors + i * lanes;
      const auto v0 = hn::Load(d, v), v1 = hn::Load(d, v + lanes), v2 = hn::Load(d, v + 2 * lanes),
                 v3 = hn::Load(d, v + 3 * lanes);
      const auto low = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
      const auto high = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
      const auto a = hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, low), hn::BitCast(d64, high)));
      const auto b = hn::BitCast(d, hn::InterleaveUpper(d64, hn::BitCast(d64, low), hn::BitCast(d64, high)));
      HWY_ALIGN R quarters[hn::MaxLanes(D())];
      hn::Store(hn::Add(a, b), d, quarters);
      auto sum = hn::Load(d4, quarters);
      for (int64_t k = 4; k < lanes; k += 4) sum = hn::Add(sum, hn::Load(d4, quarters + k));
      hn::StoreU(sum, d4, to + i);
    }
  }
#endif
  for (; i < count; ++i) to[i] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, vectors + i * lanes)));
}

// One chunk's inputs: (unit, step, lane) for channel values, (step, plane) for per-step B and C.
template <typename R>
struct ScanTile {
  R *delta, *u, *du;         // delta after bias and softplus; du = delta u
  R* slope;                  // d delta / d (its input), 1 without softplus; null where it is not wanted
  R *B, *C;                  // rows of `planes` numbers
  R *A, *B_const, *C_const;  // planes of each unit; A is multiplied by log2(e)
  R *D, *bias;               // a row of block channels
  bool* valid;               // of each step

  ScanTile(Carver<R>& carver, const ScanPlan& plan, bool with_slope) {
    const int64_t row = plan.block_units * kUnit;
    slope = with_slope ? carver.take(kScanChunk * row) : nullptr;
    delta = carver.take(kScanChunk * row);
    u = carver.take(kScanChunk * row);
    du = carver.take(kScanChunk * row);
    B = carver.take(kScanChunk * plan.planes);
    C = carver.take(kScanChunk * plan.planes);
    A = carver.take(plan.planes * row);
    B_const = carver.take(plan.planes * row);
    C_const = carver.take(plan.planes * row);
    D = carver.take(row);
    bias = carver.take(row);
    valid = reinterpret_cast<bool*>(carver.take(kScanChunk));
  }

  template <typename T>
  void load_matrices(const SelectiveScanInputs<T>& p, const BlockChannels& block) {
    planes_from_matrix<R>(block, p.complex, p.state, p.A, R(kLog2E), A);
    if (p.constant_B) planes_from_matrix<R>(block, p.complex, p.state, p.B_const, R(1), B_const);
    if (p.constant_C) planes_from_matrix<R>(block, p.complex, p.state, p.C_const, R(1), C_const);
  }

  template <typename T>
  void load_rows(const SelectiveScanInputs<T>& p, const BlockChannels& block) {
    for (int64_t c = 0; c < block.units * kUnit; ++c) {
      D[c] = p.D.data != nullptr && c < block.count ? p.D.data[(block.first + c) * p.D.d] : R(0);
      bias[c] = p.delta_bias.data != nullptr && c < block.count ? p.delta_bias.data[(block.first + c) * p.delta_bias.d]
                                                                : R(0);
    }
  }

  template <typename T>
  static void load_step_rows(View4<const T> from, const SequenceRows& rows, const bool* valid, int64_t start,
                             int64_t steps, int64_t group, int64_t planes, R* to) {
    for (int64_t j = 0; j < steps; ++j) {
      const T* row = from.data + rows.b * from.b + rows.time(start + j) * from.l + group * from.g;
      for (int64_t n = 0; n < planes; ++n) to[j * planes + n] = valid[j] ? R(to_float(row[n * from.n])) : R(0);
    }
  }

  // Steps [start, start + steps) of a sequence. A masked step has delta, u, B and C of 0 whatever the inputs hold.
  template <typename T>
  void load(const SelectiveScanInputs<T>& p, const ScanPlan& plan, const BlockChannels& block, const SequenceRows& rows,
            int64_t start, int64_t steps) {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const View2<const bool> mask = p.layout.mask;
    for (int64_t j = 0; j < steps; ++j)
      valid[j] = mask.data == nullptr || mask.data[rows.b * mask.row + rows.time(start + j) * mask.column];
    if (!p.constant_B) load_step_rows(p.B_step, rows, valid, start, steps, block.group, plan.planes, B);
    if (!p.constant_C) load_step_rows(p.C_step, rows, valid, start, steps, block.group, plan.planes, C);
    for (int64_t j = 0; j < steps; ++j) {
      const int64_t t = rows.time(start + j);
      const T* u_row = p.u.data + rows.b * p.u.b + t * p.u.l + block.first * p.u.d;
      const T* delta_row = p.delta.data + rows.b * p.delta.b + t * p.delta.l + block.first * p.delta.d;
      for (int64_t c = 0; c < block.units * kUnit; c += lanes) {
        const int64_t at = (c / kUnit * kScanChunk + j) * kUnit + c % kUnit;
        hn::Vec<decltype(d)> x = hn::Zero(d), step = hn::Zero(d), rate = constant(d, 1);
        if (valid[j] && c < block.count) {
          x = load_row(d, u_row + c * p.u.d, p.u.d, block.count - c);
          step = hn::Add(load_row(d, delta_row + c * p.delta.d, p.delta.d, block.count - c), hn::Load(d, bias + c));
          if (p.delta_softplus) step = slope != nullptr ? softplus(d, step, rate) : softplus(d, step);
        }
        if (slope != nullptr) hn::Store(rate, d, slope + at);
        hn::Store(x, d, u + at);
        hn::Store(step, d, delta + at);
        hn::Store(hn::Mul(x, step), d, du + at);
      }
    }
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#endif
