#include "adder/kernels/causal_conv1d.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/causal_conv1d_bwd_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/causal_conv1d-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// With E the rows of the initial window followed by those of x, a_j = bias + sum_k w_k E_(j + k), a piece is walked in
// chunks of steps:
//   g_j = dy_j act'(a_j)     dw_k += g_j E_(j + k)     dE_j = sum_k w_k g_(j - k)

// What the steps of a chunk are to their piece.
enum class Steps {
  kOwn,    // they belong to it
  kAfter,  // they belong to the next piece: they give the last rows their gradient, but dweight is that piece's matter
  kEnd,    // there are none: the sequence is over, and g = 0
};

// The rows of a chunk's steps. Either all lie in the tensors, or all in scratch.
template <typename From, typename To>
struct ChunkRows {
  const From** x;  // E_j, for K - 1 rows more than steps
  const From** dy;
  To** dE;  // may be dy's scratch
  int64_t x_stride, dy_stride, dE_stride;
};

template <typename R>
struct ConvSums {
  R* gradient;  // K - 1 + chunk rows: g_(j - K + 1), ..., of which the first K - 1 pass from chunk to chunk
  R* dweight;   // K rows and one for the bias: sums over a slab
  int64_t stride;
};

// Chunk sums start from 0 and are then added to the slab's, so that errors do not grow with the length of a slab.
template <int kK, bool kSilu, class D, typename From, typename To, typename R>
void convolve_gradient(D d, int64_t count, int64_t steps, Steps kind, const ConvParameters<R>& parameters,
                       const ChunkRows<From, To>& rows, const ConvSums<R>& sums) {
  using V = hn::Vec<D>;
  const int64_t stride = sums.stride;
  for (int64_t c = 0; c < count; c += static_cast<int64_t>(hn::Lanes(d))) {
    const auto load_x = [&](int64_t j) { return load_row(d, rows.x[j] + c * rows.x_stride, rows.x_stride, count - c); };
    const V bias = hn::Load(d, parameters.bias + c);
    R *gradient = sums.gradient + c, *dweight = sums.dweight + c;
    V w[kK], x[kK], g[kK], dw[kK], db = hn::Zero(d);  // g[k] is g_(j - k)
    HWY_UNROLL(4)
    for (int k = 0; k < kK; ++k) {
      w[k] = hn::Load(d, parameters.weight + k * stride + c);
      dw[k] = hn::Zero(d);
    }
    HWY_UNROLL(4)
    for (int k = 0; k < kK - 1; ++k) {
      x[k] = kind != Steps::kEnd ? load_x(k) : hn::Zero(d);
      g[k] = hn::Load(d, gradient + (kK - 2 - k) * stride);
    }
    for (int64_t j = 0; j < steps; ++j) {
      HWY_UNROLL(4)
      for (int k = kK - 1; k > 0; --k) g[k] = g[k - 1];
      if (kind == Steps::kEnd) {
        g[0] = hn::Zero(d);
      } else {
        x[kK - 1] = load_x(j + kK - 1);
        g[0] = load_row(d, rows.dy[j] + c * rows.dy_stride, rows.dy_stride, count - c);
        if constexpr (kSilu) {
          V sum = bias;
          HWY_UNROLL(4)
          for (int k = 0; k < kK; ++k) sum = hn::MulAdd(w[k], x[k], sum);
          g[0] = hn::Mul(g[0], silu_gradient(d, sum));
        }
        HWY_UNROLL(4)
        for (int k = 0; k < kK; ++k) dw[k] = hn::MulAdd(g[0], x[k], dw[k]);
        db = hn::Add(db, g[0]);
        HWY_UNROLL(4)
        for (int k = 0; k < kK - 1; ++k) x[k] = x[k + 1];
      }
      V dE = hn::Mul(w[0], g[0]);
      HWY_UNROLL(4)
      for (int k = 1; k < kK; ++k) dE = hn::MulAdd(w[k], g[k], dE);
      store_row(d, dE, rows.dE[j] + c * rows.dE_stride, rows.dE_stride, count - c);
    }
    HWY_UNROLL(4)
    for (int k = 0; k < kK - 1; ++k) hn::Store(g[k], d, gradient + (kK - 2 - k) * stride);
    if (kind != Steps::kOwn) continue;
    HWY_UNROLL(4)
    for (int k = 0; k < kK; ++k) hn::Store(hn::Add(hn::Load(d, dweight + k * stride), dw[k]), d, dweight + k * stride);
    hn::Store(hn::Add(hn::Load(d, dweight + kK * stride), db), d, dweight + kK * stride);
  }
}

template <bool kSilu, class D, typename From, typename To, typename R>
void convolve_gradient_any(D d, int64_t count, int64_t steps, Steps kind, int64_t width,
                           const ConvParameters<R>& parameters, const ChunkRows<From, To>& rows,
                           const ConvSums<R>& sums) {
  using V = hn::Vec<D>;
  const int64_t stride = sums.stride;
  for (int64_t c = 0; c < count; c += static_cast<int64_t>(hn::Lanes(d))) {
    const auto load_x = [&](int64_t j) { return load_row(d, rows.x[j] + c * rows.x_stride, rows.x_stride, count - c); };
    const R* weight = parameters.weight + c;
    R *gradient = sums.gradient + (width - 1) * stride + c, *dweight = sums.dweight + c;
    V db = hn::Zero(d);
    for (int64_t j = 0; j < steps; ++j) {
      V g = hn::Zero(d);
      if (kind != Steps::kEnd) {
        g = load_row(d, rows.dy[j] + c * rows.dy_stride, rows.dy_stride, count - c);
        if constexpr (kSilu) {
          V sum = hn::Load(d, parameters.bias + c);
          for (int64_t k = 0; k < width; ++k) sum = hn::MulAdd(hn::Load(d, weight + k * stride), load_x(j + k), sum);
          g = hn::Mul(g, silu_gradient(d, sum));
        }
      }
      hn::Store(g, d, gradient + j * stride);
      db = hn::Add(db, g);
    }
    if (kind == Steps::kOwn) {
      for (int64_t k = 0; k < width; ++k) {
        V dw = hn::Zero(d);
        for (int64_t j = 0; j < steps; ++j) dw = hn::MulAdd(hn::Load(d, gradient + j * stride), load_x(j + k), dw);
        hn::Store(hn::Add(hn::Load(d, dweight + k * stride), dw), d, dweight + k * stride);
      }
      hn::Store(hn::Add(hn::Load(d, dweight + width * stride), db), d, dweight + width * stride);
    }
    for (int64_t j = 0; j < steps; ++j) {
      V dE = hn::Zero(d);
      for (int64_t k = 0; k < width; ++k)
        dE = hn::MulAdd(hn::Load(d, weight + k * stride), hn::Load(d, gradient + (j - k) * stride), dE);
      store_row(d, dE, rows.dE[j] + c * rows.dE_stride, rows.dE_stride, count - c);
    }
    for (int64_t r = steps; r < width - 1 + steps; ++r)
      hn::Store(hn::Load(d, sums.gradient + r * stride + c), d, sums.gradient + (r - steps) * stride + c);
  }
}

template <typename T>
struct ConvBackward {
  using R = Accumulator<T>;
  const CausalConv1dBackward<T>& p;
  const ConvPlan& plan;

  struct Scratch {
    ConvParameters<R> parameters;
    ConvSums<R> sums;
    int64_t* list;  // PieceRows
    ChunkRows<T, T> direct;
    ChunkRows<R, R> staged;
    R *x_tile, *dy_tile;  // K - 1 + chunk and chunk rows
  };

  template <typename From, typename To>
  void run(const ConvBlock& block, int64_t steps, Steps kind, const Scratch& scratch,
           const ChunkRows<From, To>& chunk_rows) const {
    with_width(p.width, [&]<int kK>() {
      const Tag<T> d;
      const auto run = [&]<bool kSilu>() {
        if constexpr (kK > 0)
          convolve_gradient<kK, kSilu>(d, block.count, steps, kind, scratch.parameters, chunk_rows, scratch.sums);
        else
          convolve_gradient_any<kSilu>(d, block.count, steps, kind, p.width, scratch.parameters, chunk_rows,
                                       scratch.sums);
      };
      p.activation == ConvActivation::kSilu ? run.template operator()<true>() : run.template operator()<false>();
    });
  }

  // Steps [start, start + steps) counted from the piece's first row, all of one kind.
  void chunk(const ConvPlan::Piece& piece, const PieceRows& rows, const ConvBlock& block, int64_t start, int64_t steps,
             Steps kind, Scratch& scratch) const {
    const int64_t around = p.width - 1, b = rows.sequence.b;
    const bool first_rows_are_own = start >= around || (piece.begin == 0 && rows.source[start] >= 0);
    if (kind != Steps::kEnd && first_rows_are_own) {
      for (int64_t i = 0; i < around + steps; ++i) scratch.direct.x[i] = row_at(p.x, b, rows.source[start + i], block);
      for (int64_t j = 0; j < steps; ++j) {
        scratch.direct.dy[j] = row_at(p.dy, b, rows.source[around + start + j], block);
        scratch.direct.dE[j] = row_at(p.dx, b, rows.source[start + j], block);
      }
      return run(block, steps, kind, scratch, scratch.direct);
    }
    for (int64_t i = 0; i < around + steps && kind != Steps::kEnd; ++i)
      copy_source(p, piece, rows, block, start + i, scratch.x_tile + i * block.stride);
    for (int64_t j = 0; j < steps && kind != Steps::kEnd; ++j)
      copy_row(row_at(p.dy, b, rows.source[around + start + j], block), p.dy.d, block.count,
               scratch.dy_tile + j * block.stride, 1);
    run(block, steps, kind, scratch, scratch.staged);
    for (int64_t j = 0; j < steps; ++j)
      store_gradient(piece, rows, block, start + j, scratch.dy_tile + j * block.stride);
  }

  // Row i is complete once step i has been seen. Those before the piece are other pieces' matter, unless they are the
  // initial window.
  void store_gradient(const ConvPlan::Piece& piece, const PieceRows& rows, const ConvBlock& block, int64_t i,
                      R* row) const {
    const int64_t around = p.width - 1, past_end = i - rows.own - rows.after;
    if (i < around && piece.begin > 0) return;
    const Tag<R> d;
    if (past_end >= 0 && p.dfinal_window != nullptr) {
      const R* from = p.dfinal_window + (piece.sequence * around + past_end) * p.channels + block.first;
      for (int64_t c = 0; c < block.count; c += static_cast<int64_t>(hn::Lanes(d)))
        hn::Store(hn::Add(hn::Load(d, row + c), load_row(d, from + c, 1, block.count - c)), d, row + c);
    }
    const int64_t t = rows.source[i];
    if (t >= 0)
      copy_row(row, 1, block.count, row_at(p.dx, rows.sequence.b, t, block), p.dx.d);
    else if (p.dinitial_window != nullptr)
      copy_row(row, 1, block.count, p.dinitial_window + (piece.sequence * around - 1 - t) * p.channels + block.first,
               1);
  }

  void piece(const ConvPlan::Piece& piece, const ConvBlock& block, Scratch& scratch) const {
    const int64_t around = p.width - 1;
    const PieceRows rows(p, piece, scratch.list, true);
    rows.clear_masked(p.layout.mask, piece, block, p.dx);
    if (rows.own == 0 && piece.begin > 0) return;
    std::memset(scratch.sums.gradient, 0, sizeof(R) * around * block.stride);
    int64_t start = 0;
    const auto walk = [&](int64_t end, Steps kind) {
      while (start < end) {
        const int64_t steps = HWY_MIN(ConvPlan::kChunk, end - start);
        chunk(piece, rows, block, start, steps, kind, scratch);
        start += steps;
      }
    };
    walk(rows.own, Steps::kOwn);
    walk(rows.own + rows.after, Steps::kAfter);
    walk(rows.own + around, Steps::kEnd);
  }

  void item(int64_t block_index, int64_t slab) const {
    const ConvBlock block(plan, p.channels, block_index);
    const int64_t chunk = ConvPlan::kChunk, tile_rows = p.width - 1 + chunk;
    const auto carve = [&](std::byte* base) {
      Carver<R> carver(base);
      const Scratch scratch{
          ConvParameters<R>(carver, block, p.width),
          {carver.take(tile_rows * block.stride), carver.take((p.width + 1) * block.stride), block.stride},
          take_as<int64_t>(carver, 2 * (p.width - 1) + plan.longest_piece),
          {take_as<const T*>(carver, tile_rows), take_as<const T*>(carver, chunk), take_as<T*>(carver, chunk), p.x.d,
           p.dy.d, p.dx.d},
          {take_as<const R*>(carver, tile_rows), take_as<const R*>(carver, chunk), take_as<R*>(carver, chunk), 1, 1, 1},
          carver.take(tile_rows * block.stride),
          carver.take(chunk * block.stride)};
      return std::pair(scratch, carver.used());
    };
    Scratch scratch = carve(thread_scratch(carve(nullptr).second)).first;
    scratch.parameters.load(p, block);
    for (int64_t i = 0; i < tile_rows; ++i) scratch.staged.x[i] = scratch.x_tile + i * block.stride;
    for (int64_t j = 0; j < chunk; ++j)
      scratch.staged.dy[j] = scratch.staged.dE[j] = scratch.dy_tile + j * block.stride;
    std::memset(scratch.sums.dweight, 0, sizeof(R) * (p.width + 1) * block.stride);
    for (int64_t i = plan.slab_first[slab]; i < plan.slab_first[slab + 1]; ++i) piece(plan.pieces[i], block, scratch);
    R* sums = static_cast<R*>(p.workspace) + slab * (p.width + 1) * p.channels + block.first;
    for (int64_t k = 0; k <= p.width; ++k)
      copy_row(scratch.sums.dweight + k * block.stride, 1, block.count, sums + k * p.channels, 1);
  }

  // The slabs' sums, in order.
  void sum_slabs(int64_t block_index) const {
    const ConvBlock block(plan, p.channels, block_index);
    const Tag<R> d;
    for (int64_t k = 0; k <= p.width; ++k)
      for (int64_t c = 0; c < block.count; c += static_cast<int64_t>(hn::Lanes(d))) {
        auto sum = hn::Zero(d);
        for (int64_t slab = 0; slab < plan.slabs(); ++slab) {
          const R* from =
              static_cast<const R*>(p.workspace) + (slab * (p.width + 1) + k) * p.channels + block.first + c;
          sum = hn::Add(sum, load_row(d, from, 1, block.count - c));
        }
        const int64_t channel = block.first + c;
        if (k < p.width)
          store_row(d, sum, p.dweight + channel * p.width + k, p.width, block.count - c);
        else if (p.dbias != nullptr)
          store_row(d, sum, p.dbias + channel, 1, block.count - c);
      }
  }
};

template <typename T>
void conv_backward(const CausalConv1dBackward<T>& p) {
  const ConvPlan plan(p.layout, p.channels, p.width);
  const ConvBackward<T> backward{p, plan};
  parallel_items(plan.blocks * plan.slabs(), useful_threads(p),
                 [&](int64_t i, int64_t) { backward.item(i % plan.blocks, i / plan.blocks); });
  parallel_items(plan.blocks, useful_threads(p), [&](int64_t block, int64_t) { backward.sum_slabs(block); });
}

void conv_backward_f32(const CausalConv1dBackward<float>& p) {
  conv_backward(p);
}
void conv_backward_f64(const CausalConv1dBackward<double>& p) {
  conv_backward(p);
}
void conv_backward_bf16(const CausalConv1dBackward<bfloat16>& p) {
  conv_backward(p);
}
void conv_backward_f16(const CausalConv1dBackward<float16>& p) {
  conv_backward(p);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(conv_backward_f32);
HWY_EXPORT(conv_backward_f64);
HWY_EXPORT(conv_backward_bf16);
HWY_EXPORT(conv_backward_f16);

namespace cpu {
template <typename T>
int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<T>& p) {
  const ConvPlan plan(p.layout, p.channels, p.width);
  return plan.slabs() * (p.width + 1) * p.channels * static_cast<int64_t>(sizeof(Accumulator<T>));
}
template int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<float>&);
template int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<double>&);
template int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<bfloat16>&);
template int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<float16>&);

template <>
void causal_conv1d_backward(const CausalConv1dBackward<float>& p) {
  HWY_DYNAMIC_DISPATCH(conv_backward_f32)(p);
}
template <>
void causal_conv1d_backward(const CausalConv1dBackward<double>& p) {
  HWY_DYNAMIC_DISPATCH(conv_backward_f64)(p);
}
template <>
void causal_conv1d_backward(const CausalConv1dBackward<bfloat16>& p) {
  HWY_DYNAMIC_DISPATCH(conv_backward_bf16)(p);
}
template <>
void causal_conv1d_backward(const CausalConv1dBackward<float16>& p) {
  HWY_DYNAMIC_DISPATCH(conv_backward_f16)(p);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
