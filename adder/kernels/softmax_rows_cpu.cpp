#include "adder/kernels/softmax_rows.h"

#include <cmath>
#include <limits>

#include "adder/kernels/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/softmax_rows_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// A vector of the row, filled up with -inf behind its end.
template <class D, typename T>
HWY_INLINE hn::Vec<D> load_logits(D d, const T* p, int64_t count) {
  const auto v = load_row(d, p, 1, count);
  if (HWY_LIKELY(count >= static_cast<int64_t>(hn::Lanes(d)))) return v;
  return hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count)), v,
                        constant(d, -std::numeric_limits<double>::infinity()));
}

// The largest value, NaNs left out; -inf where there is none.
template <class D, typename T>
hn::TFromD<D> row_maximum(D d, const T* x, int64_t size) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto first = constant(d, -std::numeric_limits<double>::infinity()), second = first;
  // Max gives its second argument where one of them is NaN.
  int64_t i = 0;
  for (; i + 2 * lanes <= size; i += 2 * lanes) {
    first = hn::Max(load_as(d, x + i), first);
    second = hn::Max(load_as(d, x + i + lanes), second);
  }
  for (; i < size; i += lanes) first = hn::Max(load_logits(d, x + i, size - i), first);
  return hn::GetLane(hn::MaxOfLanes(d, hn::Max(first, second)));
}

// The first place of `value` (of a NaN, for NaN); size where there is none.
template <class D, typename T>
int64_t first_place(D d, const T* x, int64_t size, hn::TFromD<D> value) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const bool nan = std::isnan(value);
  const auto wanted = hn::Set(d, value);
  for (int64_t i = 0; i < size; i += lanes) {
    const auto v = load_logits(d, x + i, size - i);
    const auto found = nan ? hn::IsNaN(v) : hn::Eq(v, wanted);
    const auto at = static_cast<int64_t>(hn::FindFirstTrue(d, found));
    if (at >= 0) return std::min(size, i + at);
  }
  return size;
}

// Sum of exp(x - maximum), in pieces so that long rows lose no digits.
template <class D, typename T>
double exponential_sum(D d, const T* x, int64_t size, hn::TFromD<D> maximum) {
  constexpr int64_t kPiece = 1024;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto shift = hn::Set(d, maximum);
  double total = 0;
  for (int64_t start = 0; start < size; start += kPiece) {
    const int64_t end = std::min(size, start + kPiece);
    auto sum = hn::Zero(d);
    for (int64_t i = start; i < end; i += lanes)
      sum = hn::Add(sum, exp(d, hn::Sub(load_logits(d, x + i, end - i), shift)));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

template <typename T>
void softmax_row(const SoftmaxRows<T>& p, int64_t row) {
  using R = Accumulator<T>;
  const Tag<T> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  T* x = p.logits + row * p.vocab;
  const int64_t target = p.targets[row];
  const R maximum = row_maximum(d, x, p.vocab);
  const double sum = exponential_sum(d, x, p.vocab, maximum);
  int64_t prediction = std::isnan(sum) ? first_place(d, x, p.vocab, std::numeric_limits<R>::quiet_NaN()) : p.vocab;
  if (prediction == p.vocab) prediction = first_place(d, x, p.vocab, maximum);
  p.predictions[row] = prediction;
  if (target == p.ignore_index) {
    p.losses[row] = 0;
    if (p.write_gradient) std::fill_n(x, p.vocab, from_float<T>(R{0}));
    return;
  }
  p.losses[row] =
      static_cast<R>(std::log(sum) + (static_cast<double>(maximum) - static_cast<double>(to_float(x[target]))));
  if (!p.write_gradient) return;
  const auto shift = hn::Set(d, maximum), factor = constant(d, static_cast<double>(p.scale) / sum);
  const auto at_target =
      static_cast<R>(std::exp(static_cast<double>(to_float(x[target])) - static_cast<double>(maximum)) / sum - 1);
  for (int64_t i = 0; i < p.vocab; i += lanes)
    store_row(d, hn::Mul(exp(d, hn::Sub(load_row(d, x + i, 1, p.vocab - i), shift)), factor), x + i, 1, p.vocab - i);
  x[target] = from_float<T>(at_target * p.scale);
}

template <typename T>
void run(const SoftmaxRows<T>& p) {
  // About 64K logits an item.
  const int64_t block = std::max<int64_t>(1, 65536 / p.vocab);
  parallel_items((p.rows + block - 1) / block, p.threads, [&](int64_t item, int64_t) {
    const int64_t last = std::min(p.rows, (item + 1) * block);
    for (int64_t row = item * block; row < last; ++row) softmax_row(p, row);
  });
}

void softmax_rows_f32(const SoftmaxRows<float>& p) {
  run(p);
}
void softmax_rows_f64(const SoftmaxRows<double>& p) {
  run(p);
}
void softmax_rows_bf16(const SoftmaxRows<bfloat16>& p) {
  run(p);
}
void softmax_rows_f16(const SoftmaxRows<float16>& p) {
  run(p);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(softmax_rows_f32);
HWY_EXPORT(softmax_rows_f64);
HWY_EXPORT(softmax_rows_bf16);
HWY_EXPORT(softmax_rows_f16);

namespace cpu {
template <>
void softmax_rows(const SoftmaxRows<float>& p) {
  HWY_DYNAMIC_DISPATCH(softmax_rows_f32)(p);
}
template <>
void softmax_rows(const SoftmaxRows<double>& p) {
  HWY_DYNAMIC_DISPATCH(softmax_rows_f64)(p);
}
template <>
void softmax_rows(const SoftmaxRows<bfloat16>& p) {
  HWY_DYNAMIC_DISPATCH(softmax_rows_bf16)(p);
}
template <>
void softmax_rows(const SoftmaxRows<float16>& p) {
  HWY_DYNAMIC_DISPATCH(softmax_rows_f16)(p);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
