#include "adder/kernels/add_norm.h"

#include <cmath>

#include "adder/kernels/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/add_norm_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// Calls body(i, count) for each vector of a row; count is how many values are left.
template <class D, typename Body>
HWY_INLINE void over_row(D d, int64_t width, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < width; i += lanes) body(i, width - i);
}

template <class D>
HWY_INLINE hn::TFromD<D> lane_sum(D d, hn::Vec<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

template <typename T, typename Out>
void forward_row(const AddNormForward<T, Out>& p, int64_t row) {
  using R = Accumulator<T>;
  const Tag<T> d;
  using V = hn::Vec<Tag<T>>;
  const auto width = static_cast<R>(p.width);
  const T* x = p.x + row * p.width;
  const R* residual = p.residual != nullptr ? p.residual + row * p.width : nullptr;
  R* r = p.residual_out + row * p.width;
  Out* y = p.y + row * p.width;

  V sum = hn::Zero(d), squares = hn::Zero(d);
  over_row(d, p.width, [&](int64_t i, int64_t count) {
    V v = load_row(d, x + i, 1, count);
    if (residual != nullptr) v = hn::Add(v, load_row(d, residual + i, 1, count));
    store_row(d, v, r + i, 1, count);
    sum = hn::Add(sum, v);
    squares = hn::MulAdd(v, v, squares);
  });
  R mean = 0;
  if (p.kind == NormKind::kLayer) {
    mean = lane_sum(d, sum) / width;
    squares = hn::Zero(d);
    over_row(d, p.width, [&](int64_t i, int64_t count) {
      const V v = hn::Sub(load_row(d, r + i, 1, count), hn::Set(d, mean));
      const auto valid = hn::FirstN(d, static_cast<size_t>(HWY_MIN(count, static_cast<int64_t>(hn::Lanes(d)))));
      squares = hn::Add(squares, hn::IfThenElseZero(valid, hn::Mul(v, v)));
    });
    p.mean[row] = mean;
  }
  const R rstd = 1 / std::sqrt(lane_sum(d, squares) / width + static_cast<R>(p.eps));
  p.rstd[row] = rstd;
  const V scale = hn::Set(d, rstd), shift = hn::Set(d, mean);
  over_row(d, p.width, [&](int64_t i, int64_t count) {
    const V normed = hn::Mul(hn::Sub(load_row(d, r + i, 1, count), shift), scale);
    const V weight = load_row(d, p.weight + i, 1, count);
    const V v =
        p.bias != nullptr ? hn::MulAdd(normed, weight, load_row(d, p.bias + i, 1, count)) : hn::Mul(normed, weight);
    store_row(d, v, y + i, 1, count);
  });
}

// Adds the row's part of dweight and dbias to the block's sums.
template <typename T, typename Out>
void backward_row(const AddNormBackward<T, Out>& p, int64_t row, Accumulator<T>* dweight, Accumulator<T>* dbias) {
  using R = Accumulator<T>;
  const Tag<T> d;
  using V = hn::Vec<Tag<T>>;
  const int64_t at = row * p.width;
  const Out* dy = p.dy + at;
  const R* r = p.residual_out + at;
  const V rstd = hn::Set(d, p.rstd[row]), mean = hn::Set(d, p.mean != nullptr ? p.mean[row] : R{0});

  V sum = hn::Zero(d), product = hn::Zero(d);
  over_row(d, p.width, [&](int64_t i, int64_t count) {
    // Beyond the row dy and weight are 0.
    const V g = load_row(d, dy + i, 1, count);
    const V normed = hn::Mul(hn::Sub(load_row(d, r + i, 1, count), mean), rstd);
    const V gw = hn::Mul(g, load_row(d, p.weight + i, 1, count));
    sum = hn::Add(sum, gw);
    product = hn::MulAdd(gw, normed, product);
    store_row(d, hn::MulAdd(g, normed, load_row(d, dweight + i, 1, count)), dweight + i, 1, count);
    if (dbias != nullptr) store_row(d, hn::Add(g, load_row(d, dbias + i, 1, count)), dbias + i, 1, count);
  });
  const auto width = static_cast<R>(p.width);
  const V mean_sum = hn::Set(d, p.kind == NormKind::kLayer ? lane_sum(d, sum) / width : R{0});
  const V mean_product = hn::Set(d, lane_sum(d, product) / width);
  over_row(d, p.width, [&](int64_t i, int64_t count) {
    const V gw = hn::Mul(load_row(d, dy + i, 1, count), load_row(d, p.weight + i, 1, count));
    const V normed = hn::Mul(hn::Sub(load_row(d, r + i, 1, count), mean), rstd);
    V v = hn::Mul(rstd, hn::NegMulAdd(normed, mean_product, hn::Sub(gw, mean_sum)));
    if (p.dresidual_out != nullptr) v = hn::Add(v, load_row(d, p.dresidual_out + at + i, 1, count));
    if (p.dx != nullptr) store_row(d, v, p.dx + at + i, 1, count);
    if (p.dresidual != nullptr) store_row(d, v, p.dresidual + at + i, 1, count);
  });
}

template <typename R>
void sum_blocks(const R* parts, int64_t blocks, int64_t width, R* out) {
  const Tag<R> d;
  over_row(d, width, [&](int64_t i, int64_t count) {
    auto sum = hn::Zero(d);
    for (int64_t b = 0; b < blocks; ++b) sum = hn::Add(sum, load_row(d, parts + b * width + i, 1, count));
    store_row(d, sum, out + i, 1, count);
  });
}

template <typename T, typename Out>
void forward(const AddNormForward<T, Out>& p) {
  const NormBlocks blocks(p.rows);
  parallel_items(blocks.count, p.threads, [&](int64_t block, int64_t) {
    const int64_t last = std::min(p.rows, (block + 1) * blocks.rows);
    for (int64_t row = block * blocks.rows; row < last; ++row) forward_row(p, row);
  });
}

template <typename T, typename Out>
void backward(const AddNormBackward<T, Out>& p) {
  using R = Accumulator<T>;
  const NormBlocks blocks(p.rows);
  R* dweight = static_cast<R*>(p.workspace);
  R* dbias = p.dbias != nullptr ? dweight + blocks.count * p.width : nullptr;
  parallel_items(blocks.count, p.threads, [&](int64_t block, int64_t) {
    R* block_dweight = dweight + block * p.width;
    R* block_dbias = dbias != nullptr ? dbias + block * p.width : nullptr;
    std::fill_n(block_dweight, p.width, R{0});
    if (block_dbias != nullptr) std::fill_n(block_dbias, p.width, R{0});
    const int64_t last = std::min(p.rows, (block + 1) * blocks.rows);
    for (int64_t row = block * blocks.rows; row < last; ++row) backward_row(p, row, block_dweight, block_dbias);
  });
  sum_blocks(dweight, blocks.count, p.width, p.dweight);
  if (p.dbias != nullptr) sum_blocks(dbias, blocks.count, p.width, p.dbias);
}

// One function per pair of types, for HWY_EXPORT.
#define ADDER_NORM_PAIR(T, Out)                                 \
  void forward_##T##_##Out(const AddNormForward<T, Out>& p) {   \
    forward(p);                                                 \
  }                                                             \
  void backward_##T##_##Out(const AddNormBackward<T, Out>& p) { \
    backward(p);                                                \
  }
ADDER_NORM_PAIR(float, float)
ADDER_NORM_PAIR(float, bfloat16)
ADDER_NORM_PAIR(float, float16)
ADDER_NORM_PAIR(bfloat16, float)
ADDER_NORM_PAIR(bfloat16, bfloat16)
ADDER_NORM_PAIR(bfloat16, float16)
ADDER_NORM_PAIR(float16, float)
ADDER_NORM_PAIR(float16, bfloat16)
ADDER_NORM_PAIR(float16, float16)
ADDER_NORM_PAIR(double, double)
#undef ADDER_NORM_PAIR

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

#define ADDER_NORM_PAIR(T, Out)                                                 \
  HWY_EXPORT(forward_##T##_##Out);                                              \
  HWY_EXPORT(backward_##T##_##Out);                                             \
  namespace cpu {                                                               \
  template <>                                                                   \
  int64_t add_norm_backward_workspace_bytes(const AddNormBackward<T, Out>& p) { \
    return NormBlocks(p.rows).count * p.width * (p.dbias != nullptr ? 2 : 1) *  \
           static_cast<int64_t>(sizeof(Accumulator<T>));                        \
  }                                                                             \
  template <>                                                                   \
  void add_norm_forward(const AddNormForward<T, Out>& p) {                      \
    HWY_DYNAMIC_DISPATCH(forward_##T##_##Out)(p);                               \
  }                                                                             \
  template <>                                                                   \
  void add_norm_backward(const AddNormBackward<T, Out>& p) {                    \
    HWY_DYNAMIC_DISPATCH(backward_##T##_##Out)(p);                              \
  }                                                                             \
  }
ADDER_NORM_PAIR(float, float)
ADDER_NORM_PAIR(float, bfloat16)
ADDER_NORM_PAIR(float, float16)
ADDER_NORM_PAIR(bfloat16, float)
ADDER_NORM_PAIR(bfloat16, bfloat16)
ADDER_NORM_PAIR(bfloat16, float16)
ADDER_NORM_PAIR(float16, float)
ADDER_NORM_PAIR(float16, bfloat16)
ADDER_NORM_PAIR(float16, float16)
ADDER_NORM_PAIR(double, double)
#undef ADDER_NORM_PAIR

}  // namespace adder::kernels
#endif
