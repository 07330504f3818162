#pragma once

#include "adder/kernels/decode_lanes.cuh"
#include "adder/kernels/token_keys.cuh"

namespace adder::kernels::cuda::decoding {

// The warps that compute.
template <typename W, int kStates>
class Step {
 public:
  __device__ Step(const DecodeStep<W>& p, const SharedLayout& l, unsigned char* shared)
      : p_(p),
        e_(exchange_in<W>(p.workspace, p)),
        activations_(reinterpret_cast<W*>(shared + l.activations)),
        partial_(reinterpret_cast<float*>(shared + l.partial)),
        squares_(reinterpret_cast<float*>(shared + l.squares)),
        residual_(reinterpret_cast<float*>(shared + l.residual)),
        projected_(reinterpret_cast<float*>(shared + l.projected)),
        z_(reinterpret_cast<float*>(shared + l.own)),
        progress_(reinterpret_cast<int*>(shared + l.progress)),
        layers_(reinterpret_cast<const DecodeLayer<W>*>(shared + l.layers)),
        ring_(ring_in(l, shared)),
        shares_(p),
        own_(shares_.channels),
        channels_(own_.end - own_.begin),
        rows_(p.rows),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warps_a_row_(rows_ > 4   ? 1
                     : rows_ > 2 ? 2
                                 : kWarps / rows_),
        one_of_model_(1.0f / static_cast<float>(p.d_model)),
        direct_(projects_directly<W>(p)),
        round_(*e_.launches * static_cast<unsigned>(p.layers)) {
    u_ = z_ + rows_ * channels_;
  }

  __device__ void run() {
#pragma unroll 1
    for (int i = 0; i < p_.layers; ++i) {
      const DecodeLayer<W>& layer = layers_[i];
      if (threadIdx.x == 0) atomicExch(progress_, i);
      norm(i);
      ++round_;
      in_projection(layer);
      if (direct_) {
        project_one_row(layer);
      } else {
        take_activations(e_.u);
        const int values = p_.rank + 2 * kStates;
        products(rows_of(p_, layer, shares_, kX), {}, nothing, [&](bool, int out, int row, float y) {
          Word<float>::publish(e_.projected + row * values + out, y, round_);
        });
      }
      recurrence(layer);
      take_activations(e_.y);
      products(rows_of(p_, layer, shares_, kOut), {}, nothing, [&](bool, int out, int row, float y) {
        float& sum = residual_[row * (shares_.model.end - shares_.model.begin) + out - shares_.model.begin];
        sum += y;
        Word<float>::publish(e_.residual + row * p_.d_model + out, sum, round_);
      });
    }
    norm(p_.layers);
    unsigned long long best = 0;
    products(head_rows(p_, shares_), {}, nothing, [&](bool, int out, int row, float y) {
      y *= scale(row);
      p_.logits[int64_t{row} * p_.vocab + out] = y;
      // NaN and +inf become the largest of all.
      best = max(best, y < __int_as_float(0x7F800000) ? key_of(y, out) : kFault);
    });
    if (p_.choose) publish_best(best);
  }

  __device__ void finish() {
    if (threadIdx.x >= 32) return;
    unsigned before = 0;
    if (lane_ == 0) before = atomicAdd(e_.finished, 1);
    if (__shfl_sync(kAllLanes, before, 0) != gridDim.x - 1) return;
    __threadfence();
    if (p_.choose)
      for (int row = 0; row < rows_; ++row) choose(row);
    if (lane_ == 0) {
      *e_.finished = 0;
      ++*e_.launches;
    }
  }

 private:
  static constexpr unsigned long long kFault = ~0ull;

  __device__ void publish_best(unsigned long long best) {
    auto* const of_row = reinterpret_cast<unsigned long long*>(projected_);
    meet();
    if (threadIdx.x < static_cast<unsigned>(rows_)) of_row[threadIdx.x] = 0;
    meet();
    const int row = static_cast<int>(threadIdx.x) / kTileRows % (kThreads / kTilesAtOnce / kTileRows);
    if (row < rows_) atomicMax(of_row + row, best);
    meet();
    if (threadIdx.x < 32) {
      if (lane_ < rows_) __stcg(e_.best + blockIdx.x * rows_ + lane_, of_row[lane_]);
      __threadfence();
    }
    __syncwarp();
  }

  // By the first warp of the block that is the last to finish.
  __device__ void choose(int row) const {
    unsigned long long best = 0;
    for (unsigned block = lane_; block < gridDim.x; block += 32)
      best = max(best, __ldcg(e_.best + block * rows_ + row));
    for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, step));
    if (lane_ != 0) return;
    const unsigned none = key_of(-__int_as_float(0x7F800000));
    const int64_t token = best == kFault ? kNotFinite
                          : static_cast<unsigned>(best >> 32) <= none
                              ? kNoneFinite
                              : static_cast<int64_t>(~static_cast<unsigned>(best));
    p_.tokens[row] = token;
    put_copy(p_.copies, rows_, row, token);
  }

  static __device__ __forceinline__ void nothing(bool, int, int) {}
  static __device__ __forceinline__ int no_more(int) { return 0; }

  __device__ __forceinline__ int pitch(int columns) const { return columns + 64 / static_cast<int>(sizeof(W)); }

  __device__ __forceinline__ const W* embedding_of(int row) const {
    return p_.embedding + token_or_first(p_.tokens[row], p_.vocab) * p_.d_model;
  }

  // Activations: the residual stream times the norm's weight; sums of squares, by which the products are scaled later.
  __device__ __forceinline__ void norm(int i) {
    const float* const weight = i < p_.layers ? layers_[i].norm_weight : p_.norm_weight;
    const int threads = 32 * warps_a_row_, row = warp_ / warps_a_row_;
    const int thread = static_cast<int>(threadIdx.x) - row * threads, vectors = p_.d_model / 2;
    W* const to = activations_ + row * pitch(p_.d_model);
    float sum = 0;
    const auto weights_of = [&](int v) { return *reinterpret_cast<const float2*>(weight + 2 * v); };
    const auto use = [&](int v, const float(&x)[2], float2 w) {
      store_pair(to + 2 * v, x[0] * w.x, x[1] * w.y);
      sum = fmaf(x[0], x[0], fmaf(x[1], x[1], sum));
    };
    if (row < rows_) {
      if (i == 0) {
        const W* const from = embedding_of(row);
        for (int v = thread; v < vectors; v += threads) {
          const float2 x = pair(from + 2 * v);
          use(v, {x.x, x.y}, weights_of(v));
        }
        const Share own = shares_.model;
        for (int m = own.begin + thread; m < own.end; m += threads)
          residual_[row * (own.end - own.begin) + m - own.begin] = widen(from[m]);
      } else {
        take_words<float>(e_.residual + row * p_.d_model, vectors, round_, thread, threads, weights_of, use);
      }
    }
    sum = sum_lanes(sum, 32);
    if (lane_ == 0) squares_[warp_] = sum;
    meet();
  }
  // 1 / the root mean square of a row.
  __device__ __forceinline__ float scale(int row) const {
    float sum = 0;
    for (int w = 0; w < warps_a_row_; ++w) sum += squares_[row * warps_a_row_ + w];
    return rsqrtf(sum * one_of_model_ + p_.eps);
  }

  // Activations from the other blocks: (rows, d_inner).
  __device__ __forceinline__ void take_activations(const typename Word<W>::Bits* from) {
    constexpr int kVector = Word<W>::kVector;
    const int d_inner = p_.d_inner, gap = pitch(d_inner) - d_inner;
    take_words<W>(from, rows_ * d_inner / kVector, round_, static_cast<int>(threadIdx.x), kThreads, no_more,
                  [&](int v, const W(&values)[kVector], int) {
                    const int at = v * kVector;
                    int row = 0;
                    for (int r = 1; r < rows_; ++r) row += at >= r * d_inner;
                    Vector<W, kVector> out;
#pragma unroll
                    for (int k = 0; k < kVector; ++k) out.value[k] = values[k];
                    *reinterpret_cast<Vector<W, kVector>*>(activations_ + at + row * gap) = out;
                  });
    meet();
  }

  // The products of the block's rows of one or two matrices with the activations: done(second, out, row, value), each
  // by one thread, which has called prepare(second, out, row) before.
  template <typename Prepare, typename Done>
  __device__ __forceinline__ void products(const WeightRows<W>& first, const WeightRows<W>& second,
                                           const Prepare& prepare, const Done& done) {
    const int of_first = tiles(first), all = of_first + tiles(second);
#pragma unroll 1
    for (int tile = 0; tile < all; tile += kTilesAtOnce) {
      const int mine = tile + static_cast<int>(threadIdx.x) / (kThreads / kTilesAtOnce);
      const bool in_second = mine >= of_first;
      const int out = (in_second ? second.begin + (mine - of_first) * kTileRows : first.begin + mine * kTileRows) +
                      static_cast<int>(threadIdx.x) % kTileRows;
      const int row = static_cast<int>(threadIdx.x) / kTileRows % (kThreads / kTilesAtOnce / kTileRows);
      const bool is_mine = mine < all && out < (in_second ? second.end : first.end) && row < rows_;
      if (is_mine) prepare(in_second, out, row);
      turn_ = 1 - turn_;
      const int at_once = kWarps * kTileRows * rows_;
      float* const partial = partial_ + turn_ * kTilesAtOnce * at_once;
#pragma unroll 1
      for (int t = 0; t < kTilesAtOnce && tile + t < all; ++t) {
        const WeightRows<W>& matrix = tile + t < of_first ? first : second;
        const int rows =
            min(kTileRows, matrix.end - matrix.begin - (tile + t - (tile + t < of_first ? 0 : of_first)) * kTileRows);
        const int units = units_for(rows);
        TileProduct<W> product;
#pragma unroll 1
        for (int column = 0; column < first.columns; column += kPieceColumns<W>) {
          const Piece piece = ring_.wait(units);
          product.template add<kWarps>(piece, min(kPieceColumns<W>, first.columns - column), activations_ + column,
                                       pitch(first.columns), rows_, warp_, lane_);
          ring_.release(lane_);
        }
        product.store(partial + t * at_once + warp_ * kTileRows * rows_, rows_, lane_);
      }
      meet();
      if (is_mine) {
        const float* const from = partial + (mine - tile) * at_once + row * kTileRows + threadIdx.x % kTileRows;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) sum += from[w * kTileRows * rows_];
        done(in_second, out, row, sum);
      }
    }
  }

  __device__ __forceinline__ void in_projection(const DecodeLayer<W>& layer) {
    ConvolutionLane lane;
    float scaled = 0;
    products(
        rows_of(p_, layer, shares_, kInX), rows_of(p_, layer, shares_, kInZ),
        [&](bool is_z, int d, int row) {
          if (!is_z) lane.load(p_, layer, row, d);
          scaled = scale(row);
        },
        [&](bool is_z, int d, int row, float y) {
          y *= scaled;
          const int at = row * channels_ + d - own_.begin;
          if (is_z) {
            z_[at] = y;
            return;
          }
          const float sum = lane.step(p_, layer, row, d, widen(narrow<W>(y)));
          const W u = narrow<W>(sum * sigmoid_fast(sum));
          u_[at] = widen(u);
          Word<W>::publish(e_.u + row * p_.d_inner + d, u, round_);
        });
  }

  // x_proj of a single sequence: few rows for each block, whose weights meet the activations as they come.
  __device__ __forceinline__ void project_one_row(const DecodeLayer<W>& layer) {
    constexpr int kVector = Word<W>::kVector;
    struct Weights {
      Vector<W, kVector> of[kMostDirect];
    };
    const Share own = shares_.projected;
    const W* const from = layer.x_weight + own.begin * p_.d_inner;
    float sum[kMostDirect] = {};
    take_words_by<W, kDirectVectors>(
        e_.u, p_.d_inner / kVector, round_, static_cast<int>(threadIdx.x), kThreads,
        [&](int v) {
          Weights w;
#pragma unroll
          for (int r = 0; r < kMostDirect; ++r)
            if (own.begin + r < own.end)
              w.of[r] = *reinterpret_cast<const Vector<W, kVector>*>(from + r * p_.d_inner + v * kVector);
          return w;
        },
        [&](int, const W(&values)[kVector], const Weights& w) {
#pragma unroll
          for (int r = 0; r < kMostDirect; ++r)
#pragma unroll
            for (int k = 0; k < kVector; ++k)
              if (own.begin + r < own.end) sum[r] = fmaf(widen(values[k]), widen(w.of[r].value[k]), sum[r]);
        });
#pragma unroll
    for (int r = 0; r < kMostDirect; ++r) {
      sum[r] = sum_lanes(sum[r], 32);
      if (lane_ == 0) projected_[warp_ * kMostDirect + r] = sum[r];
    }
    meet();
    const int out = static_cast<int>(threadIdx.x);
    if (out < own.end - own.begin) {
      float all = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) all += projected_[w * kMostDirect + out];
      Word<float>::publish(e_.projected + own.begin + out, all, round_);
    }
    meet();  // projected_ is for what all blocks say again
  }

  __device__ __forceinline__ void recurrence(const DecodeLayer<W>& layer) {
    using Lane = ChannelLane<kStates>;
    const int items = 4 * rows_ * channels_, rank = p_.rank, values = rank + 2 * kStates;
    Lane lane{};
    int item = static_cast<int>(threadIdx.x);
    if (item < items) lane.load(p_, layer, own_, item);  // these need not wait
    take_words_by<float, 1>(e_.projected, rows_ * values / 2, round_, static_cast<int>(threadIdx.x), kThreads, no_more,
                            [&](int v, const float(&x)[2], int) {
                              projected_[2 * v] = x[0];
                              projected_[2 * v + 1] = x[1];
                            });
    const int units = units_for_narrow(channels_);
    const Piece weights = ring_.wait(units);
    meet();
    // Whole warps, which sum among lanes.
#pragma unroll 1
    for (; item < (items + 31) / 32 * 32; item += kThreads) {
      const bool is_item = item < items;
      const float* const low = projected_ + lane.row * values;
      float delta = 0;
      if (is_item) {
        const unsigned w = weights.narrow_row(lane.channel);
#pragma unroll 2
        for (int k = lane.quarter * 4; k < rank; k += 16) {
          const auto four = load_shared<Vector<W, 4>>(w + k * static_cast<int>(sizeof(W)));
          const auto x = *reinterpret_cast<const float4*>(low + k);
          delta = fmaf(widen(four.value[0]), x.x, delta);
          delta = fmaf(widen(four.value[1]), x.y, delta);
          delta = fmaf(widen(four.value[2]), x.z, delta);
          delta = fmaf(widen(four.value[3]), x.w, delta);
        }
      }
      delta = sum_lanes(delta, 4);
      delta = softplus_fast(delta + lane.bias);
      const int at = lane.row * channels_ + lane.channel;
      const float u = is_item ? u_[at] : 0, z = is_item ? z_[at] : 0;
      const float* const B = low + rank + lane.quarter * Lane::kEach;
      float y = 0, du = delta * u;
#pragma unroll
      for (int n = 0; n < Lane::kEach; ++n) {
        lane.state[n] = fmaf(exp2_fast(delta * lane.A[n]), lane.state[n], du * B[n]);
        y = fmaf(B[kStates + n], lane.state[n], y);
      }
      y = sum_lanes(y, 4);
      y = fmaf(lane.D, u, y) * z * sigmoid_fast(z);
      const int d = lane.row * p_.d_inner + own_.begin + lane.channel;
      if (is_item && lane.quarter == 0) Word<W>::publish(e_.y + d, narrow<W>(y), round_);
      if (is_item) store_floats(layer.state + d * kStates + lane.quarter * Lane::kEach, lane.state);
      if (item + kThreads < items) lane.load(p_, layer, own_, item + kThreads);
    }
    ring_.release(lane_);
  }

  const DecodeStep<W>& p_;
  const Exchange<W> e_;
  W* activations_;
  float *partial_, *squares_, *residual_, *projected_, *z_, *u_;
  int* progress_;
  const DecodeLayer<W>* layers_;
  RingReader ring_;
  const Shares shares_;
  const Share own_;
  const int channels_, rows_, warp_, lane_, warps_a_row_;  // how many warps share a row in norm()
  const float one_of_model_;
  const bool direct_;
  unsigned round_;
  int turn_ = 0;
};

}  // namespace adder::kernels::cuda::decoding
