#include "adder/kernels/sum_of_squares.h"

#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/sum_of_squares_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/parallel.h"
#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

HWY_INLINE hn::Vec<hn::ScalableTag<double>> load_double(hn::ScalableTag<double>, const double* p) {
  return hn::LoadU(hn::ScalableTag<double>(), p);
}
HWY_INLINE hn::Vec<hn::ScalableTag<double>> load_double(hn::ScalableTag<double> d, const float* p) {
  return hn::PromoteTo(d, hn::LoadU(hn::Rebind<float, decltype(d)>(), p));
}

// Of one block, with four accumulators.
template <typename T>
double block_sum(const T* x, int64_t count) {
  const hn::ScalableTag<double> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[4];
  for (auto& s : sum) s = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    HWY_UNROLL(4)
    for (int k = 0; k < 4; ++k) {
      const auto v = load_double(d, x + i + k * lanes);
      sum[k] = hn::MulAdd(v, v, sum[k]);
    }
  }
  double total = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))));
  for (; i < count; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

template <typename T>
double sum_of_squares(const T* x, int64_t count, int64_t threads) {
  constexpr int64_t kBlock = int64_t{1} << 16;
  std::vector<double> sums((count + kBlock - 1) / kBlock);
  parallel_items(static_cast<int64_t>(sums.size()), threads, [&](int64_t item, int64_t) {
    sums[item] = block_sum(x + item * kBlock, std::min(kBlock, count - item * kBlock));
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

double sum_of_squares_f32(const float* x, int64_t count, int64_t threads) {
  return sum_of_squares(x, count, threads);
}
double sum_of_squares_f64(const double* x, int64_t count, int64_t threads) {
  return sum_of_squares(x, count, threads);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(sum_of_squares_f32);
HWY_EXPORT(sum_of_squares_f64);

namespace cpu {
template <>
double sum_of_squares(const float* x, int64_t count, int64_t threads) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares_f32)(x, count, threads);
}
template <>
double sum_of_squares(const double* x, int64_t count, int64_t threads) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares_f64)(x, count, threads);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
