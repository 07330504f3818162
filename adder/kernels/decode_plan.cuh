#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/decode_exchange.cuh"
#include "adder/kernels/decode_ring.cuh"
#include "adder/kernels/decode_step.h"

// Who does what in decode_step.cu, and where it lies.
namespace adder::kernels::cuda::decoding {

constexpr int kWarps = 8, kThreads = 32 * kWarps;  // that compute
constexpr int kAllThreads = kThreads + 32 * (kLoadWarps + 1);
constexpr int kMostBlocks = 1024;
constexpr int kTilesAtOnce = 2;
constexpr int kMostWidth = 4;      // of the convolution
constexpr int kMostDirect = 2;     // rows of x_proj of a block that need not go through the ring
constexpr int kDirectVectors = 2;  // of their columns, for each thread

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

template <typename W>
__device__ __forceinline__ bool projects_directly(const DecodeShape& s) {
  return s.rows == 1 && s.rank + 2 * s.states <= kMostDirect * static_cast<int>(gridDim.x) &&
         s.d_inner <= kDirectVectors * Word<W>::kVector * kThreads;
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

template <typename W>
__device__ __forceinline__ WeightRows<W> head_rows(const DecodeStep<W>& p, const Shares& s) {
  return {p.head, p.d_model, s.vocab.begin, s.vocab.end};
}

}  // namespace adder::kernels::cuda::decoding
