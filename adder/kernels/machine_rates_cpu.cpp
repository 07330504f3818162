#include "adder/kernels/machine_rates.h"

#include <chrono>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/machine_rates_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/parallel.h"
#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// Eight independent chains of exp2, `rounds` times; the sum keeps the compiler honest.
float exponentials(int64_t rounds) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> x[8];
  for (int i = 0; i < 8; ++i) x[i] = hn::Set(d, -0.1f * static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
    HWY_UNROLL(8)
    for (int i = 0; i < 8; ++i) x[i] = hn::Neg(exp2(d, x[i]));
  }
  auto sum = hn::Zero(d);
  for (int i = 0; i < 8; ++i) sum = hn::Add(sum, x[i]);
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

int64_t exponentials_a_round() {
  return 8 * static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
}

// Sums `count` floats (a multiple of 256) with eight accumulators.
float read_sum(const float* data, int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[8];
  for (auto& s : sum) s = hn::Zero(d);
  for (int64_t i = 0; i < count; i += 8 * lanes) {
    HWY_UNROLL(8)
    for (int k = 0; k < 8; ++k) sum[k] = hn::Add(sum[k], hn::LoadU(d, data + i + k * lanes));
  }
  for (int k = 1; k < 8; ++k) sum[0] = hn::Add(sum[0], sum[k]);
  return hn::GetLane(hn::SumOfLanes(d, sum[0]));
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels::cpu {
namespace {

HWY_EXPORT(exponentials);
HWY_EXPORT(exponentials_a_round);
HWY_EXPORT(read_sum);

// The shortest of several timings of a loop whose items all threads share.
template <typename Body>
double best_seconds(int64_t threads, int64_t items, const Body& body) {
  std::vector<float> sums(items);
  double best = 1e30;
  for (int run = 0; run < 5; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    parallel_items(items, threads, [&](int64_t i, int64_t) { sums[i] = body(i); });
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  volatile float kept = 0;
  for (const float sum : sums) kept = kept + sum;
  return best;
}

}  // namespace

double exponentials_per_second(int64_t threads) {
  const int64_t items = 64, rounds = 2000;
  const double seconds =
      best_seconds(threads, items, [&](int64_t) { return HWY_DYNAMIC_DISPATCH(exponentials)(rounds); });
  return static_cast<double>(items * rounds * HWY_DYNAMIC_DISPATCH(exponentials_a_round)()) / seconds;
}

double read_bytes_per_second(int64_t threads) {
  const int64_t items = 256,
                piece = int64_t{1} << 18;  // 256 MiB in all, beyond the caches that one process can count on
  const std::vector<float> data(items * piece, 1.0f);
  const double seconds = best_seconds(
      threads, items, [&](int64_t i) { return HWY_DYNAMIC_DISPATCH(read_sum)(data.data() + i * piece, piece); });
  return static_cast<double>(items * piece) * sizeof(float) / seconds;
}

}  // namespace adder::kernels::cpu
#endif
