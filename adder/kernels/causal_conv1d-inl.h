// What the forward and the backward convolution share: the rows around one piece of a sequence, for one block of
// channels. Masked steps never enter.
#if defined(ADDER_KERNELS_CAUSAL_CONV1D_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ADDER_KERNELS_CAUSAL_CONV1D_INL_H_
#undef ADDER_KERNELS_CAUSAL_CONV1D_INL_H_
#else
#define ADDER_KERNELS_CAUSAL_CONV1D_INL_H_
#endif

#include "adder/kernels/causal_conv1d_plan.h"
#include "adder/kernels/parallel.h"
#include "adder/kernels/scratch.h"
#include "adder/kernels/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

struct ConvBlock {
  int64_t first, count;
  int64_t stride;  // from one row of scratch to the next; not a power of two, so that a column does not fall into one
                   // set of the cache

  ConvBlock(const ConvPlan& plan, int64_t channels, int64_t block)
      : first(block * plan.block_channels),
        count(HWY_MIN(plan.block_channels, channels - first)),
        stride(plan.block_channels + ConvPlan::kUnit) {}
};

// A piece of scratch for values of another type than the carver's.
template <typename Value, typename R>
Value* take_as(Carver<R>& carver, int64_t count) {
  return reinterpret_cast<Value*>(
      carver.take((count * int64_t{sizeof(Value)} + int64_t{sizeof(R)} - 1) / int64_t{sizeof(R)}));
}

// A block's channels of one step.
template <typename T>
HWY_INLINE T* row_at(View3<T> view, int64_t b, int64_t t, const ConvBlock& block) {
  return view.data + b * view.b + t * view.l + block.first * view.d;
}

// Where the rows around a piece lie: K - 1 before it, its own that are not masked, up to K - 1 after it. An entry is a
// step, or -1 - r for row r of the initial window.
struct PieceRows {
  SequenceRows sequence;
  int64_t* source;
  int64_t own, after;

  template <typename T>
  PieceRows(const CausalConv1dInputs<T>& p, const ConvPlan::Piece& piece, int64_t* list, bool with_after)
      : sequence(p.layout, piece.sequence), source(list), own(0), after(0) {
    const int64_t around = p.width - 1;
    for (int64_t j = piece.begin; j < piece.end; ++j)
      if (valid(p.layout.mask, j)) source[around + own++] = sequence.time(j);
    int64_t found = 0;
    for (int64_t j = piece.begin - 1; j >= 0 && found < around; --j)
      if (valid(p.layout.mask, j)) source[around - ++found] = sequence.time(j);
    for (int64_t i = 0; i < around - found; ++i) source[i] = -1 - (found + i);
    if (!with_after) return;
    for (int64_t j = piece.end; j < sequence.length && after < around; ++j)
      if (valid(p.layout.mask, j)) source[around + own + after++] = sequence.time(j);
  }

  bool valid(View2<const bool> mask, int64_t j) const {
    return mask.data == nullptr || mask.data[sequence.b * mask.row + sequence.time(j) * mask.column];
  }

  // Zeros for the masked steps of a piece.
  template <typename T>
  void clear_masked(View2<const bool> mask, const ConvPlan::Piece& piece, const ConvBlock& block, View3<T> to) const {
    if (mask.data == nullptr) return;
    const Tag<T> d;
    for (int64_t j = piece.begin; j < piece.end; ++j) {
      if (valid(mask, j)) continue;
      T* row = row_at(to, sequence.b, sequence.time(j), block);
      for (int64_t c = 0; c < block.count; c += static_cast<int64_t>(hn::Lanes(d)))
        store_row(d, hn::Zero(d), row + c * to.d, to.d, block.count - c);
    }
  }
};

template <typename From, typename To>
HWY_INLINE void copy_row(const From* from, int64_t from_stride, int64_t count, To* to, int64_t to_stride) {
  const Tag<To> d;
  for (int64_t c = 0; c < count; c += static_cast<int64_t>(hn::Lanes(d)))
    store_row(d, load_row(d, from + c * from_stride, from_stride, count - c), to + c * to_stride, to_stride, count - c);
}

// Copies the row that an entry of PieceRows names.
template <typename T, typename R>
void copy_source(const CausalConv1dInputs<T>& p, const ConvPlan::Piece& piece, const PieceRows& rows,
                 const ConvBlock& block, int64_t entry, R* to) {
  const int64_t source = rows.source[entry];
  if (source >= 0)
    copy_row(row_at(p.x, rows.sequence.b, source, block), p.x.d, block.count, to, 1);
  else if (p.initial_window != nullptr)
    copy_row(p.initial_window + (piece.sequence * (p.width - 1) - 1 - source) * p.channels + block.first, 1,
             block.count, to, 1);
  else
    std::memset(to, 0, sizeof(R) * block.count);
}

// The weights of a block as K rows and the bias as one.
template <typename R>
struct ConvParameters {
  R *weight, *bias;
  int64_t stride;

  ConvParameters(Carver<R>& carver, const ConvBlock& block, int64_t width)
      : weight(carver.take(width * block.stride)), bias(carver.take(block.stride)), stride(block.stride) {}

  template <typename T>
  void load(const CausalConv1dInputs<T>& p, const ConvBlock& block) {
    const int64_t row = p.weight.row, column = p.weight.column;
    for (int64_t k = 0; k < p.width; ++k)
      copy_row(p.weight.data + block.first * row + k * column, row, block.count, weight + k * stride, 1);
    if (p.bias.data != nullptr)
      copy_row(p.bias.data + block.first * p.bias.d, p.bias.d, block.count, bias, 1);
    else
      std::memset(bias, 0, sizeof(R) * block.count);
  }
};

// The common widths get code of their own, with their rows in registers; 0 is any width.
template <typename Run>
void with_width(int64_t width, const Run& run) {
  switch (width) {
    case 2:
      return run.template operator()<2>();
    case 3:
      return run.template operator()<3>();
    case 4:
      return run.template operator()<4>();
    default:
      return run.template operator()<0>();
  }
}

// A few thousand values are done before other threads have woken up.
template <typename T>
int64_t useful_threads(const CausalConv1dInputs<T>& p) {
  const int64_t rows = p.layout.batch * p.layout.length + p.layout.sequences * (p.width - 1);
  return rows * p.channels < 32768 ? 1 : p.threads;
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#endif
