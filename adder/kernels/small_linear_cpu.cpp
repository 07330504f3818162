#include "adder/kernels/small_linear.h"

#include <utility>

#include "adder/kernels/parallel.h"
#include "adder/kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/small_linear_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/simd-inl.h"
#include "hwy/cache_control.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

constexpr int64_t kLeastBytes = 64 << 10;

// Rows whose inputs are widened at a time.
constexpr int64_t kSlabRows = 512;

// Sums in flight: as many as the registers hold beside weights and inputs, at most 8 outputs.
constexpr int kInFlight = HWY_TARGET == HWY_AVX3 ? 16 : 8;

// kO outputs of kM rows, one vector of sums for each. x is (kM, in); y has a row stride of out.
// `more`: as many outputs follow.
template <int kO, int kM, typename X, typename W, typename R>
void dots(int64_t in, int64_t out, const R* x, const W* weight, const R* bias, X* y, bool more) {
  const Tag<X> d;
  using V = hn::Vec<Tag<X>>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum[kO][kM];
  HWY_UNROLL(8)
  for (int o = 0; o < kO; ++o) HWY_UNROLL(8)
  for (int m = 0; m < kM; ++m) sum[o][m] = hn::Zero(d);
  const auto step = [&](int64_t i, const auto& load_weight, const auto& load_x) {
    V w[kO];
    HWY_UNROLL(8)
    for (int o = 0; o < kO; ++o) w[o] = load_weight(weight + o * in + i);
    HWY_UNROLL(8)
    for (int m = 0; m < kM; ++m) {
      const V v = load_x(x + m * in + i);
      HWY_UNROLL(8)
      for (int o = 0; o < kO; ++o) sum[o][m] = hn::MulAdd(w[o], v, sum[o][m]);
    }
  };
  const auto whole = [&](const auto* p) { return load_as(d, p); };
  int64_t i = 0;
  for (; i + 2 * lanes <= in; i += 2 * lanes) {
    step(i, whole, whole);
    step(i + lanes, whole, whole);
    if (!more) continue;
    // The same place of the next outputs.
    HWY_UNROLL(8)
    for (int o = kO; o < 2 * kO; ++o)
      for (int64_t byte = 0; byte < 2 * lanes * static_cast<int64_t>(sizeof(W)); byte += 64)
        hwy::Prefetch(reinterpret_cast<const char*>(weight + o * in + i) + byte);
  }
  for (; i < in; i += lanes) {
    const auto rest = [&](const auto* p) { return load_row(d, p, 1, in - i); };
    step(i, rest, rest);
  }
  for (int o = 0; o < kO; ++o)
    for (int m = 0; m < kM; ++m) {
      const R dot = hn::GetLane(hn::SumOfLanes(d, sum[o][m]));
      y[m * out + o] = from_float<X>(bias != nullptr ? dot + bias[o] : dot);
    }
}

// Outputs [begin, end) of kM rows from `row` on. `first`: these weights are read for the first time.
template <int kM, typename X, typename W, typename R>
void output_range(const SmallLinear<X, W>& p, const R* x, int64_t row, int64_t begin, int64_t end, bool first) {
  const auto at = [&]<int kO>(int64_t o) {
    dots<kO, kM>(p.in, p.out, x + row * p.in, p.weight + o * p.in, p.bias != nullptr ? p.bias + o : nullptr,
                 p.y + row * p.out + o, first && o + 2 * kO <= end);
  };
  constexpr int kOutputs = std::min(8, kInFlight / kM);
  int64_t o = begin;
  for (; o + kOutputs <= end; o += kOutputs) at.template operator()<kOutputs>(o);
  for (; o < end; ++o) at.template operator()<1>(o);
}

// Outputs [begin, end) of all rows: eight rows at a time, and with more of them few outputs at a time, whose weights
// stay in the nearest cache.
template <typename X, typename W, typename R>
void output_block(const SmallLinear<X, W>& p, const R* x, int64_t begin, int64_t end) {
  const auto rows_from = [&](int64_t row, int64_t first_output, int64_t last_output) {
    const auto rows = [&]<int kM>() { output_range<kM>(p, x, row, first_output, last_output, row == 0); };
    switch (p.rows - row) {
      case 1:
        return rows.template operator()<1>();
      case 2:
        return rows.template operator()<2>();
      case 3:
        return rows.template operator()<3>();
      case 4:
        return rows.template operator()<4>();
      case 5:
        return rows.template operator()<5>();
      case 6:
        return rows.template operator()<6>();
      case 7:
        return rows.template operator()<7>();
      default:
        return rows.template operator()<8>();
    }
  };
  if (p.rows <= kSmallLinearRows) return rows_from(0, begin, end);
  for (int64_t o = begin; o < end; o += 8)
    for (int64_t row = 0; row < p.rows; row += kSmallLinearRows) rows_from(row, o, std::min(o + 8, end));
}

template <typename X, typename W>
void run(const SmallLinear<X, W>& p) {
  using R = Accumulator<X>;
  if (p.rows == 0) return;
  if (p.rows > kSlabRows) {
    SmallLinear<X, W> slab = p;
    for (int64_t row = 0; row < p.rows; row += kSlabRows) {
      slab.rows = std::min(kSlabRows, p.rows - row);
      slab.x = p.x + row * p.in;
      slab.y = p.y + row * p.out;
      run(slab);
    }
    return;
  }
  const R* x;
  if constexpr (std::is_same_v<X, R>) {
    x = p.x;
  } else {
    const Tag<X> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const int64_t size = p.rows * p.in;
    R* wide = reinterpret_cast<R*>(thread_scratch(size * sizeof(R)));
    for (int64_t i = 0; i < size; i += lanes) store_row(d, load_row(d, p.x + i, 1, size - i), wide + i, 1, size - i);
    x = wide;
  }
  // One long run of weights a thread, so that each prefetch is its own thread's; no threads where they would cost more
  // than they bring.
  const int64_t row_bytes = std::max<int64_t>(1, p.in * static_cast<int64_t>(sizeof(W)));
  const int64_t least = std::max<int64_t>(1, kLeastBytes / row_bytes / 8) * 8;
  const int64_t share = (p.out + thread_count(p.threads) - 1) / thread_count(p.threads);
  const int64_t block = std::max(least, (share + 7) / 8 * 8);
  parallel_items((p.out + block - 1) / block, p.threads,
                 [&](int64_t item, int64_t) { output_block(p, x, item * block, std::min(p.out, (item + 1) * block)); });
}

// One function per pair of types, for HWY_EXPORT.
#define ADDER_LINEAR_PAIR(X, W)                             \
  void small_linear_##X##_##W(const SmallLinear<X, W>& p) { \
    run(p);                                                 \
  }
ADDER_LINEAR_PAIR(float, float)
ADDER_LINEAR_PAIR(float, bfloat16)
ADDER_LINEAR_PAIR(float, float16)
ADDER_LINEAR_PAIR(bfloat16, bfloat16)
ADDER_LINEAR_PAIR(float16, float16)
ADDER_LINEAR_PAIR(double, double)
#undef ADDER_LINEAR_PAIR

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

#define ADDER_LINEAR_PAIR(X, W)                      \
  HWY_EXPORT(small_linear_##X##_##W);                \
  namespace cpu {                                    \
  template <>                                        \
  void small_linear(const SmallLinear<X, W>& p) {    \
    HWY_DYNAMIC_DISPATCH(small_linear_##X##_##W)(p); \
  }                                                  \
  }
ADDER_LINEAR_PAIR(float, float)
ADDER_LINEAR_PAIR(float, bfloat16)
ADDER_LINEAR_PAIR(float, float16)
ADDER_LINEAR_PAIR(bfloat16, bfloat16)
ADDER_LINEAR_PAIR(float16, float16)
ADDER_LINEAR_PAIR(double, double)
#undef ADDER_LINEAR_PAIR

}  // namespace adder::kernels
#endif
