#include "adder/kernels/decode_step.h"

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_numbers.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/decode_exchange.cuh"
#include "adder/kernels/decode_ring.cuh"
#include "adder/kernels/token_keys.cuh"

// All blocks stay on the card for the whole step and tell each other what they found, four times a layer. What a block
// needs of the weights depends on nothing computed, so some warps of each block stream it into shared memory, ahead of
// the others: memory never waits for them.
//
//   1. RMSNorm of the residual stream; in_proj; convolution and SiLU of the block's own channels
//   2. x_proj
//   3. dt_proj, softplus, the recurrence and the gate of its own channels
//   4. out_proj, added to the residual stream
namespace adder::kernels::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // that compute
constexpr int kAllThreads = kThreads + 32 * (kLoadWarps + 1);
constexpr int kMostBlocks = 1024;
constexpr int kTilesAtOnce = 2;
constexpr int kMostWidth = 4;
constexpr int kMostDirect = 2;  // rows of x_proj of a block that need not go through the ring

// What blocks tell each other, a word a value. Each is written again only by blocks that have had something of later
// stages from all others, who have read it by then.
template <typename W>
struct Exchange {
  unsigned *launches, *finished;
  typename Word<float>::Bits *residual, *projected;  // (rows, d_model), (rows, rank + 2 states)
  typename Word<W>::Bits *u, *y;                     // (rows, d_inner)
  unsigned long long* best;                          // (blocks, rows) keys of the blocks' largest logits
};

template <typename W>
__host__ __device__ Exchange<W> exchange_in(void* workspace, const DecodeShape& s, int64_t* bytes = nullptr) {
  auto* const begin = static_cast<char*>(workspace);
  int64_t at = 0;
  const auto take = [&](int64_t count) {
    char* const here = begin + at;
    at += (count + 127) / 128 * 128;
    return here;
  };
  using Float = typename Word<float>::Bits;
  using Narrow = typename Word<W>::Bits;
  Exchange<W> e;
  e.launches = reinterpret_cast<unsigned*>(take(sizeof(unsigned)));
  e.finished = reinterpret_cast<unsigned*>(take(sizeof(unsigned)));
  e.residual = reinterpret_cast<Float*>(take(int64_t{s.rows} * s.d_model * sizeof(Float)));
  e.projected = reinterpret_cast<Float*>(take(int64_t{s.rows} * (s.rank + 2 * s.states) * sizeof(Float)));
  e.u = reinterpret_cast<Narrow*>(take(int64_t{s.rows} * s.d_inner * sizeof(Narrow)));
  e.y = reinterpret_cast<Narrow*>(take(int64_t{s.rows} * s.d_inner * sizeof(Narrow)));
  e.best = reinterpret_cast<unsigned long long*>(take(int64_t{kMostBlocks} * s.rows * sizeof(unsigned long long)));
  if (bytes != nullptr) *bytes = at;
  return e;
}

// What is the block's of `count` things, and of all of them.
struct Share {
  int begin, end;
};
__device__ __forceinline__ Share share(int64_t count) {
  return {static_cast<int>(count * blockIdx.x / gridDim.x), static_cast<int>(count * (blockIdx.x + 1) / gridDim.x)};
}
struct Shares {
  Share channels, projected, model, vocab;
  __device__ explicit Shares(const DecodeShape& s)
      : channels(share(s.d_inner)),
        projected(share(s.rank + 2 * s.states)),
        model(share(s.d_model)),
        vocab(share(s.vocab)) {}
};

template <typename W>
__device__ __forceinline__ int tiles(const WeightRows<W>& rows) {
  return (rows.end - rows.begin + kTileRows - 1) / kTileRows;
}

__device__ __forceinline__ bool projects_directly(const DecodeShape& s) {
  return s.rows == 1 && s.rank + 2 * s.states <= kMostDirect * static_cast<int>(gridDim.x);
}

enum Matrix { kInX, kInZ, kX, kDt, kOut, kMatrices };

// The rows of a layer's matrices that are this block's, in the order in which they are used.
template <typename W>
__device__ __forceinline__ WeightRows<W> rows_of(const DecodeShape& p, const DecodeLayer<W>& layer, const Shares& s,
                                                 int matrix) {
  const int d_model = p.d_model, d_inner = p.d_inner;
  switch (matrix) {
    case kInX:
      return {layer.in_weight, d_model, s.channels.begin, s.channels.end};
    case kInZ:
      return {layer.in_weight + int64_t{p.d_inner} * p.d_model, d_model, s.channels.begin, s.channels.end};
    case kX:
      return {layer.x_weight, d_inner, s.projected.begin, s.projected.end};
    case kDt:
      return {layer.dt_weight, p.rank, s.channels.begin, s.channels.end};
    default:
      return {layer.out_weight, d_inner, s.model.begin, s.model.end};
  }
}

__device__ __forceinline__ void meet() {  // the computing warps of a block
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

struct SharedLayout {
  int activations, partial, squares, residual, own, projected, layers, progress, state, ring, units, bytes;
};

template <typename W>
__host__ __device__ SharedLayout layout_of(const DecodeShape& s, int blocks, int limit) {
  SharedLayout l;
  const int64_t widest = s.d_inner > s.d_model ? s.d_inner : s.d_model;
  const int64_t own = (s.d_inner + blocks - 1) / blocks;
  int64_t at = 0;
  const auto take = [&at](int64_t bytes) {
    const int64_t here = at;
    at += (bytes + 127) / 128 * 128;
    return static_cast<int>(here < (1 << 30) ? here : (1 << 30));
  };
  l.activations = take(s.rows * (widest + 64 / sizeof(W)) * sizeof(W));
  l.partial = take(2 * kTilesAtOnce * kWarps * kTileRows * s.rows * sizeof(float));
  l.squares = take(kWarps * sizeof(float));
  l.residual = take(s.rows * ((s.d_model + blocks - 1) / blocks) * sizeof(float));
  l.own = take(2 * s.rows * own * sizeof(float));
  l.projected = take(s.rows * (s.rank + 2 * s.states) * sizeof(float));
  l.layers = take(s.layers * sizeof(DecodeLayer<W>));
  l.progress = take(sizeof(int));
  l.state = take(sizeof(RingState));
  l.ring = take(0);
  const int64_t units = at < limit ? (limit - at) / kUnitBytes : 0;
  l.units = static_cast<int>(units < kMostPieces ? units : kMostPieces);
  l.bytes = l.ring + l.units * kUnitBytes;
  return l;
}

__device__ __forceinline__ Ring ring_in(const SharedLayout& l, unsigned char* shared) {
  return {shared + l.ring, reinterpret_cast<RingState*>(shared + l.state), l.units};
}

// A channel's four lanes; each has a quarter of its states.
template <int kStates>
struct ChannelLane {
  static constexpr int kEach = kStates / 4;
  int row, channel, quarter;
  float state[kEach], A[kEach], bias, D;

  template <typename W>
  __device__ __forceinline__ void load(const DecodeStep<W>& p, const DecodeLayer<W>& layer, Share own, int item) {
    const int channels = own.end - own.begin;
    row = p.rows == 1 ? 0 : item / (4 * channels);
    channel = item / 4 - row * channels;
    quarter = item % 4;
    const int d = own.begin + channel;
    const float* const from = layer.state + (row * p.d_inner + d) * kStates + quarter * kEach;
    load_floats(state, from);
    load_floats(A, layer.A + d * kStates + quarter * kEach);
#pragma unroll
    for (int n = 0; n < kEach; ++n) A[n] *= kLog2E;
    bias = layer.dt_bias[d];
    D = layer.D[d];
  }
};

template <typename W>
__device__ __forceinline__ WeightRows<W> head_rows(const DecodeStep<W>& p, const Shares& s) {
  return {p.head, p.d_model, s.vocab.begin, s.vocab.end};
}

// The warps that do not compute: all weights of the step in the order of their use, and the small things of a layer on
// their way to the second cache, a layer ahead.
template <typename W>
class Loader {
 public:
  __device__ Loader(const DecodeStep<W>& p, const SharedLayout& l, unsigned char* shared)
      : p_(p),
        layers_(reinterpret_cast<const DecodeLayer<W>*>(shared + l.layers)),
        progress_(reinterpret_cast<const volatile int*>(shared + l.progress)),
        ring_(ring_in(l, shared), static_cast<int>(threadIdx.x - kThreads) / 32),
        shares_(p) {}

  __device__ void load() {
#pragma unroll 1
    for (int i = 0; i < p_.layers; ++i) {
#pragma unroll 1
      for (int matrix = 0; matrix < kMatrices; ++matrix) {
        if (matrix == kX && projects_directly(p_)) continue;
        const WeightRows<W> rows = rows_of(p_, layers_[i], shares_, matrix);
        if (matrix == kDt)
          ring_.write_narrow(rows);
        else
          ring_.write(rows);
      }
    }
    ring_.write(head_rows(p_, shares_));
  }
  __device__ void prefetch() {
#pragma unroll 1
    for (int i = 0; i < p_.layers; ++i) {
      while (*progress_ < i - 1) __nanosleep(100);
      prefetch(layers_[i]);
    }
  }

 private:
  __device__ void prefetch_lines(const void* begin, int bytes) const {
    const auto* const from = static_cast<const char*>(begin);
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x) % 32 * 128; at < bytes; at += 32 * 128)
      asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
  }
  // The small things of a layer, which the ring does not bring, on their way to the second cache.
  __device__ void prefetch(const DecodeLayer<W>& layer) const {
    const Share own = shares_.channels;
    const int channels = own.end - own.begin;
#pragma unroll 1
    for (int row = 0; row < p_.rows; ++row) {
      prefetch_lines(layer.state + (row * p_.d_inner + own.begin) * p_.states, channels * p_.states * 4);
#pragma unroll 1
      for (int k = 0; k + 1 < p_.width; ++k)
        prefetch_lines(layer.window + (row * (p_.width - 1) + k) * p_.d_inner + own.begin, channels * 4);
    }
    prefetch_lines(layer.A + own.begin * p_.states, channels * p_.states * 4);
    prefetch_lines(layer.conv_weight + own.begin * p_.width, channels * p_.width * 4);
    if (projects_directly(p_))
      prefetch_lines(layer.x_weight + shares_.projected.begin * p_.d_inner,
                     (shares_.projected.end - shares_.projected.begin) * p_.d_inner * static_cast<int>(sizeof(W)));
    prefetch_lines(layer.dt_bias + own.begin, channels * 4);
    prefetch_lines(layer.D + own.begin, channels * 4);
    if (layer.conv_bias != nullptr) prefetch_lines(layer.conv_bias + own.begin, channels * 4);
    prefetch_lines(layer.norm_weight + shares_.model.begin, (shares_.model.end - shares_.model.begin) * 4);
  }

  const DecodeStep<W>& p_;
  const DecodeLayer<W>* layers_;
  const volatile int* progress_;
  RingWriter ring_;
  const Shares shares_;
};

// What the convolution of one channel of one row takes, asked for before its newest input is known.
struct ConvolutionLane {
  float window[kMostWidth - 1], weight[kMostWidth], bias;

  template <typename W>
  __device__ __forceinline__ void load(const DecodeStep<W>& p, const DecodeLayer<W>& layer, int row, int d) {
    const int width = p.width;
    const float* const from = layer.window + row * (width - 1) * p.d_inner + d;
#pragma unroll
    for (int k = 0; k < kMostWidth; ++k) {
      if (k + 1 < width) window[k] = from[k * p.d_inner];
      if (k < width) weight[k] = layer.conv_weight[d * width + k];
    }
    bias = layer.conv_bias != nullptr ? layer.conv_bias[d] : 0.0f;
  }

  // The output before the activation; the window moves on.
  template <typename W>
  __device__ __forceinline__ float step(const DecodeStep<W>& p, const DecodeLayer<W>& layer, int row, int d,
                                        float newest) const {
    const int width = p.width;
    float* const to = layer.window + row * (width - 1) * p.d_inner + d;
    float sum = bias;
#pragma unroll
    for (int k = 0; k < kMostWidth; ++k) {
      if (k >= width) break;
      const float x = k + 1 < width ? window[k < kMostWidth - 1 ? k : 0] : newest;
      sum = fmaf(weight[k], x, sum);
      if (k > 0) to[(k - 1) * p.d_inner] = x;
    }
    return sum;
  }
};

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
        progress_(reinterpret_cast<volatile int*>(shared + l.progress)),
        layers_(reinterpret_cast<const DecodeLayer<W>*>(shared + l.layers)),
        ring_(ring_in(l, shared), static_cast<int>(threadIdx.x) / 32),
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
        direct_(projects_directly(p)),
        round_(*e_.launches * static_cast<unsigned>(p.layers)) {
    u_ = z_ + rows_ * channels_;
  }

  __device__ void run() {
#pragma unroll 1
    for (int i = 0; i < p_.layers; ++i) {
      const DecodeLayer<W>& layer = layers_[i];
      if (threadIdx.x == 0) *progress_ = i;
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
    const int64_t token = p_.tokens[row];
    // Whoever chose it says where there was none to choose.
    return p_.embedding + (token >= 0 && token < p_.vocab ? token : 0) * p_.d_model;
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
        take_words<float, 3>(e_.residual + row * p_.d_model, vectors, round_, thread, threads, weights_of, use);
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
    take_words<W, 3>(from, rows_ * d_inner / kVector, round_, static_cast<int>(threadIdx.x), kThreads, no_more,
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
          ring_.release(units, lane_);
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
    take_words<W, 2>(
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
    take_words<float, 1>(e_.projected, rows_ * values / 2, round_, static_cast<int>(threadIdx.x), kThreads, no_more,
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
    ring_.release(units, lane_);
  }

  const DecodeStep<W>& p_;
  const Exchange<W> e_;
  W* activations_;
  float *partial_, *squares_, *residual_, *projected_, *z_, *u_;
  volatile int* progress_;
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

template <typename W, int kStates>
__global__ void __launch_bounds__(kAllThreads, 1)
    decode(const __grid_constant__ DecodeStep<W> p, const __grid_constant__ SharedLayout l) {
  extern __shared__ __align__(128) unsigned char shared[];
  if (threadIdx.x == 0) {
    prepare(ring_in(l, shared));
    *reinterpret_cast<int*>(shared + l.progress) = 0;
  }
  auto* const layers = reinterpret_cast<uint64_t*>(shared + l.layers);
  for (int i = threadIdx.x; i < p.layers * static_cast<int>(sizeof(DecodeLayer<W>) / 8); i += blockDim.x)
    layers[i] = reinterpret_cast<const uint64_t*>(p.layer)[i];
  __syncthreads();
  if (threadIdx.x >= kAllThreads - 32) return Loader<W>(p, l, shared).prefetch();
  if (threadIdx.x >= kThreads) return Loader<W>(p, l, shared).load();
  Step<W, kStates> step(p, l, shared);
  step.run();
  step.finish();
}

template <typename W>
auto kernel_for(int states) {
  return states == 8 ? decode<W, 8> : states == 32 ? decode<W, 32> : states == 64 ? decode<W, 64> : decode<W, 16>;
}

// Every block has something to say in every stage that all wait for.
int blocks_for(const DecodeShape& s) {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return std::min({count, s.d_model, kMostBlocks});
}

}  // namespace

int64_t decode_step_workspace_bytes(const DecodeShape& s) {
  int64_t bytes = 0;
  exchange_in<float>(nullptr, s, &bytes);  // the wider of both
  return bytes;
}

template <typename W>
bool decode_step_fits(const DecodeShape& s) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(W));
  if (s.rows < 1 || s.rows > kDecodeRows || s.width < 1 || s.width > kMostWidth || s.rank < 1 || s.layers < 1)
    return false;
  if (s.states != 8 && s.states != 16 && s.states != 32 && s.states != 64) return false;
  if (s.d_model % TileProduct<W>::kBlock != 0 || s.d_inner % TileProduct<W>::kBlock != 0 || s.rank % kVector != 0)
    return false;
  constexpr int kLargest = 1 << 20;  // places in all but the matrices and the logits are 32 bits
  if (s.d_model > kLargest || s.d_inner > kLargest) return false;
  if (s.rank * static_cast<int>(sizeof(W)) > kNarrowBytes) return false;
  const int blocks = blocks_for(s), channels = (s.d_inner + blocks - 1) / blocks;
  const int largest = std::max(kTileRows / kUnitRows, (channels + kNarrowRows - 1) / kNarrowRows);  // units of a piece
  return layout_of<W>(s, blocks, shared_memory_limit()).units >= 2 * largest;
}

template <typename W>
void decode_step(const DecodeStep<W>& p, CudaStream stream) {
  const int blocks = blocks_for(p);
  SharedLayout l = layout_of<W>(p, blocks, shared_memory_limit());
  DecodeStep<W> step = p;
  const auto kernel = kernel_for<W>(p.states);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.bytes), "decode_step");
  void* arguments[] = {&step, &l};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(kAllThreads), arguments,
                                    static_cast<size_t>(l.bytes), stream),
        "decode_step");
}

#define ADDER_INSTANTIATE(W)                             \
  template bool decode_step_fits<W>(const DecodeShape&); \
  template void decode_step(const DecodeStep<W>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)

}  // namespace adder::kernels::cuda
