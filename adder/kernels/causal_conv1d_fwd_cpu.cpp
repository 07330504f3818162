#include "adder/kernels/causal_conv1d.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/causal_conv1d_fwd_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/causal_conv1d-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// x[j] .. x[j + K - 1] give y[j]. Parameters past `count` are never used for a result, whatever they hold.
template <int kK, bool kSilu, class D, typename From, typename To, typename R>
void convolve(D d, int64_t count, int64_t steps, int64_t width, const ConvParameters<R>& parameters,
              const From* const* x, int64_t x_stride, To* const* y, int64_t y_stride) {
  using V = hn::Vec<D>;
  for (int64_t c = 0; c < count; c += static_cast<int64_t>(hn::Lanes(d))) {
    const auto load = [&](int64_t j) { return load_row(d, x[j] + c * x_stride, x_stride, count - c); };
    const V bias = hn::Load(d, parameters.bias + c);
    const R* weight = parameters.weight + c;
    V w[kK + 1], rows[kK + 1];
    for (int k = 0; k < kK; ++k) w[k] = hn::Load(d, weight + k * parameters.stride);
    for (int k = 0; k < kK - 1; ++k) rows[k] = load(k);
    for (int64_t j = 0; j < steps; ++j) {
      V sum = bias;
      if constexpr (kK > 0) {
        rows[kK - 1] = load(j + kK - 1);
        HWY_UNROLL(4)
        for (int k = 0; k < kK; ++k) sum = hn::MulAdd(w[k], rows[k], sum);
        HWY_UNROLL(4)
        for (int k = 0; k < kK - 1; ++k) rows[k] = rows[k + 1];
      } else {
        for (int64_t k = 0; k < width; ++k)
          sum = hn::MulAdd(hn::Load(d, weight + k * parameters.stride), load(j + k), sum);
      }
      store_row(d, kSilu ? silu(d, sum) : sum, y[j] + c * y_stride, y_stride, count - c);
    }
  }
}

template <typename T>
struct ConvForward {
  using R = Accumulator<T>;
  const CausalConv1dForward<T>& p;
  const ConvPlan& plan;

  struct Scratch {
    ConvParameters<R> parameters;
    R* tile;        // K - 1 + chunk rows
    int64_t* list;  // PieceRows
    const T** x;    // rows of a chunk, where they lie
    const R** staged;
    T** y;
  };

  void chunk(const ConvPlan::Piece& piece, const PieceRows& rows, const ConvBlock& block, int64_t start, int64_t steps,
             const Scratch& scratch) const {
    const int64_t inputs = p.width - 1 + steps, b = rows.sequence.b;
    for (int64_t j = 0; j < steps; ++j) scratch.y[j] = row_at(p.y, b, rows.source[p.width - 1 + start + j], block);
    const auto run = [&](const auto* const* x, int64_t stride) {
      with_width(p.width, [&]<int kK>() {
        const Tag<T> d;
        if (p.activation == ConvActivation::kSilu)
          convolve<kK, true>(d, block.count, steps, p.width, scratch.parameters, x, stride, scratch.y, p.y.d);
        else
          convolve<kK, false>(d, block.count, steps, p.width, scratch.parameters, x, stride, scratch.y, p.y.d);
      });
    };
    if (rows.source[start] >= 0) {
      for (int64_t i = 0; i < inputs; ++i) scratch.x[i] = row_at(p.x, b, rows.source[start + i], block);
      return run(scratch.x, p.x.d);
    }
    for (int64_t i = 0; i < inputs; ++i) {
      scratch.staged[i] = scratch.tile + i * block.stride;
      copy_source(p, piece, rows, block, start + i, scratch.tile + i * block.stride);
    }
    run(scratch.staged, 1);
  }

  void piece(const ConvPlan::Piece& piece, const ConvBlock& block, const Scratch& scratch) const {
    const PieceRows rows(p, piece, scratch.list, false);
    rows.clear_masked(p.layout.mask, piece, block, p.y);
    for (int64_t start = 0; start < rows.own; start += ConvPlan::kChunk)
      chunk(piece, rows, block, start, HWY_MIN(ConvPlan::kChunk, rows.own - start), scratch);
    if (piece.end < rows.sequence.length) return;
    for (int64_t r = 0; r < p.width - 1; ++r)
      copy_source(p, piece, rows, block, rows.own + r,
                  p.final_window + (piece.sequence * (p.width - 1) + r) * p.channels + block.first);
  }

  void item(int64_t block_index, int64_t slab) const {
    const ConvBlock block(plan, p.channels, block_index);
    const int64_t tile_rows = p.width - 1 + ConvPlan::kChunk;
    const auto carve = [&](std::byte* base) {
      Carver<R> carver(base);
      const Scratch scratch{ConvParameters<R>(carver, block, p.width),
                            carver.take(tile_rows * block.stride),
                            take_as<int64_t>(carver, p.width - 1 + plan.longest_piece),
                            take_as<const T*>(carver, tile_rows),
                            take_as<const R*>(carver, tile_rows),
                            take_as<T*>(carver, ConvPlan::kChunk)};
      return std::pair(scratch, carver.used());
    };
    Scratch scratch = carve(thread_scratch(carve(nullptr).second)).first;
    scratch.parameters.load(p, block);
    for (int64_t i = plan.slab_first[slab]; i < plan.slab_first[slab + 1]; ++i) piece(plan.pieces[i], block, scratch);
  }
};

template <typename T>
void conv_forward(const CausalConv1dForward<T>& p) {
  const ConvPlan plan(p.layout, p.channels, p.width);
  const ConvForward<T> forward{p, plan};
  parallel_items(plan.blocks * plan.slabs(), useful_threads(p),
                 [&](int64_t i, int64_t) { forward.item(i % plan.blocks, i / plan.blocks); });
}

void conv_forward_f32(const CausalConv1dForward<float>& p) {
  conv_forward(p);
}
void conv_forward_f64(const CausalConv1dForward<double>& p) {
  conv_forward(p);
}
void conv_forward_bf16(const CausalConv1dForward<bfloat16>& p) {
  conv_forward(p);
}
void conv_forward_f16(const CausalConv1dForward<float16>& p) {
  conv_forward(p);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(conv_forward_f32);
HWY_EXPORT(conv_forward_f64);
HWY_EXPORT(conv_forward_bf16);
HWY_EXPORT(conv_forward_f16);

namespace cpu {
template <>
void causal_conv1d_forward(const CausalConv1dForward<float>& p) {
  HWY_DYNAMIC_DISPATCH(conv_forward_f32)(p);
}
template <>
void causal_conv1d_forward(const CausalConv1dForward<double>& p) {
  HWY_DYNAMIC_DISPATCH(conv_forward_f64)(p);
}
template <>
void causal_conv1d_forward(const CausalConv1dForward<bfloat16>& p) {
  HWY_DYNAMIC_DISPATCH(conv_forward_bf16)(p);
}
template <>
void causal_conv1d_forward(const CausalConv1dForward<float16>& p) {
  HWY_DYNAMIC_DISPATCH(conv_forward_f16)(p);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
