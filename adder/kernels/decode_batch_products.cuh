#pragma once

#include "adder/kernels/decode_step.h"
#include "adder/kernels/product_rows.cuh"
#include "adder/kernels/token_keys.cuh"

// The kernels of decode_batch.cu that multiply, and what they do before and after.
namespace adder::kernels::cuda {

constexpr int kMostConvWidth = 4;
// x_proj has few outputs: short slices of few rows, or it would keep few processors at work.
constexpr int kXSlices = 8, kXRows = 32, kOutSlices = 4;

// What lies between the kernels.
struct BatchExchange {
  float *residual, *squares;  // (rows, d_model), (rows, tiles of d_model)
  bfloat16* normed;           // (rows, d_model): not scaled yet
  bfloat16 *u, *z, *y;        // (rows, d_inner)
  bfloat16* projected;        // (rows, rank + 2 states)
};

// A block a row: the residual stream begins with the embedding.
static __global__ void __launch_bounds__(256)
    embed(const DecodeStep<bfloat16> p, const BatchExchange e, const float* norm_weight) {
#ifdef ADDER_HAS_WGMMA
  const int64_t row = blockIdx.x;
  const bfloat16* const from = p.embedding + token_or_first(p.tokens[row], p.vocab) * p.d_model;
  const int tiles = tiles_of(p.d_model), lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += 8) {
    const int m = tile * kTileOutputs + 2 * lane;
    float square = 0;
    if (m < p.d_model) {
      const float2 x = pair(from + m), w = *reinterpret_cast<const float2*>(norm_weight + m);
      *reinterpret_cast<float2*>(e.residual + row * p.d_model + m) = x;
      store_pair(e.normed + row * p.d_model + m, x.x * w.x, x.y * w.y);
      square = fmaf(x.x, x.x, x.y * x.y);
    }
    square = sum_lanes(square, 32);
    if (lane == 0) e.squares[row * tiles + tile] = square;
  }
#endif
}

// Of each of the block's rows, 1 / the root mean square: a warp finds those of kEach rows. The sums of squares are
// asked for before the products, and added up after them.
template <int kRows>
struct Scales {
  static constexpr int kEach = kRows / 8;

  struct Lane {
    float sum[kEach] = {};

    __device__ __forceinline__ void load(const DecodeShape& p, const BatchExchange& e, int first) {
      const int tiles = tiles_of(p.d_model);
      const int begin = first + static_cast<int>(threadIdx.x) / 32 * kEach;
      for (int t = static_cast<int>(threadIdx.x) % 32; t < tiles; t += 32)
#pragma unroll
        for (int r = 0; r < kEach; ++r)
          if (begin + r < p.rows) sum[r] += e.squares[int64_t{begin + r} * tiles + t];
    }
  };
  float of[kRows];

  __device__ __forceinline__ void find(const Lane& lane, int d_model, float eps) {
    const int place = static_cast<int>(threadIdx.x) % 32;
    float own = 0;  // lane r has row r
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const float all = sum_lanes(lane.sum[r], 32);
      own = place == r ? all : own;
    }
    if (place < kEach)
      of[static_cast<int>(threadIdx.x) / 32 * kEach + place] = rsqrtf(own / static_cast<float>(d_model) + eps);
  }
};

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_in(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
               const __grid_constant__ BatchExchange e, const __grid_constant__ DecodeLayer<bfloat16> layer) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  __shared__ Scales<kRows> scales;
  using Share = ProductShare<kRows, 1>;
  const auto place = ProductPlace::of_block<kRows, 1>();
  constexpr int kEach = Share::kEach, kPast = kMostConvWidth - 1;
  // This thread's four channels; their windows are asked for before anything else.
  const int d = place.tile * kHalfOutputs + Share::output(0), width = p.width;
  const bool is_channel = d < p.d_inner && threadIdx.x < kProductThreads;
  float window[kEach][kPast][4], weight[4][kMostConvWidth], bias[4] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = place.first_row + Share::row(0, i);
#pragma unroll
    for (int k = 0; k < kPast; ++k)
      if (is_channel && row < p.rows && k + 1 < width)
        load_floats(window[i][k], layer.window + (int64_t{row} * (width - 1) + k) * p.d_inner + d);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (is_channel && width == kMostConvWidth) load_floats(weight[c], layer.conv_weight + (d + c) * kMostConvWidth);
#pragma unroll
    for (int k = 0; k < kMostConvWidth - 1; ++k)
      if (is_channel && width < kMostConvWidth && k < width) weight[c][k] = layer.conv_weight[(d + c) * width + k];
  }
  if (is_channel && layer.conv_bias != nullptr) load_floats(bias, layer.conv_bias + d);
  typename Scales<kRows>::Lane squares;
  multiply_rows<kRows, 1>(
      product, place, shared, barriers, [&] { squares.load(p, e, place.first_row); },
      [&] { scales.find(squares, p.d_model, p.eps); },
      [&](int half, int i, int r, int, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        if (row >= p.rows || d >= p.d_inner) return;
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] *= scales.of[r];
        if (half == 1) return store_values(e.z + row * p.d_inner + d, sum);
        float out[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sum[c] = widen(narrow<bfloat16>(sum[c]));
          out[c] = bias[c];
        }
        float* const to = layer.window + row * (width - 1) * p.d_inner + d;
#pragma unroll
        for (int k = 0; k < kMostConvWidth; ++k) {
          if (k >= width) break;
#pragma unroll
          for (int c = 0; c < 4; ++c)
            out[c] = fmaf(weight[c][k], k + 1 < width ? window[i][k < kPast ? k : 0][c] : sum[c], out[c]);
          if (k > 0) {
            if (k + 1 < width)
              store_floats(to + (k - 1) * p.d_inner, window[i][k < kPast ? k : 0]);
            else
              store_floats(to + (k - 1) * p.d_inner, sum);
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) out[c] *= sigmoid_fast(out[c]);
        store_values(e.u + row * p.d_inner + d, out);
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_x(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
              const __grid_constant__ BatchExchange e) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  const auto place = ProductPlace::of_block<kRows, kXSlices>();
  const int values = p.rank + 2 * p.states;
  multiply_rows<kRows, kXSlices>(
      product, place, shared, barriers, [] {}, [] {},
      [&](int, int, int r, int output, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        const int out = place.tile * kTileOutputs + output;
        if (row < p.rows && out < values) store_values(e.projected + row * values + out, sum);
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_out(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
                const __grid_constant__ BatchExchange e, const float* norm_weight) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  using Share = ProductShare<kRows, kOutSlices>;
  const auto place = ProductPlace::of_block<kRows, kOutSlices>();
  const int tiles = tiles_of(p.d_model), m = place.tile * kTileOutputs + Share::output(0);
  float before[Share::kEach][4] = {}, weight[4] = {};
  const auto begin = [&] {
    if (m >= p.d_model) return;
    load_floats(weight, norm_weight + m);
#pragma unroll
    for (int i = 0; i < Share::kEach; ++i) {
      const int r = Share::row(place.slice, i), row = place.first_row + r;
      if (r < kRows && row < p.rows) load_floats(before[i], e.residual + int64_t{row} * p.d_model + m);
    }
  };
  multiply_rows<kRows, kOutSlices>(
      product, place, shared, barriers, begin, [] {},
      [&](int, int i, int r, int, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        float square = 0;
        if (row < p.rows && m < p.d_model) {
          float normed[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sum[c] += before[i][c];
            square = fmaf(sum[c], sum[c], square);
            normed[c] = sum[c] * weight[c];
          }
          store_floats(e.residual + row * p.d_model + m, sum);
          store_values(e.normed + row * p.d_model + m, normed);
        }
        const unsigned lanes = __activemask();  // all of a row's
        for (int step = Share::kThreadsOfRow / 2; step > 0; step /= 2) square += __shfl_xor_sync(lanes, square, step);
        if (row < p.rows && place.tile < tiles && threadIdx.x % Share::kThreadsOfRow == 0)
          e.squares[row * tiles + place.tile] = square;
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_head(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
                 const __grid_constant__ BatchExchange e) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  __shared__ Scales<kRows> scales;
  const auto place = ProductPlace::of_block<kRows, 1>();
  typename Scales<kRows>::Lane squares;
  multiply_rows<kRows, 1>(
      product, place, shared, barriers, [&] { squares.load(p, e, place.first_row); },
      [&] { scales.find(squares, p.d_model, p.eps); },
      [&](int, int, int r, int output, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        const int out = place.tile * kTileOutputs + output;
        if (row >= p.rows) return;
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] *= scales.of[r];
        float* const to = p.logits + row * p.vocab + out;
        if (p.vocab % 4 == 0) {
          if (out < p.vocab) store_floats(to, sum);
        } else {
          for (int c = 0; c < 4 && out + c < p.vocab; ++c) to[c] = sum[c];
        }
      });
#endif
}

}  // namespace adder::kernels::cuda
