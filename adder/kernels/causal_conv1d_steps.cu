#include "adder/kernels/causal_conv1d_cuda.h"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/vector_bits.cuh"

// Tensors whose steps lie side by side, (B, D, L): some lanes walk a piece of a channel's row, each with 16 bytes of
// neighbouring steps at a time. What a lane needs of the steps before or after its own comes from the lane beside it.
namespace adder::kernels::cuda {
namespace {

template <typename T>
constexpr int kSteps = 16 / static_cast<int>(sizeof(T));

// Where some lanes walk. Groups behind the last piece walk it too, and store nothing.
template <typename T, int kLanes>
struct PieceOfRow {
  int lane, chunks;
  bool there;
  unsigned b, d, slab;  // of the sums: (B, pieces)
  int64_t begin;
  int count;  // steps

  __device__ PieceOfRow(const CausalConv1dInputs<T>& p, const ConvPieces& pieces) {
    const unsigned groups = static_cast<unsigned>(p.layout.batch * p.channels * pieces.of_row);
    const unsigned all = (blockIdx.x * blockDim.x + threadIdx.x) / kLanes, i = min(all, groups - 1);
    const unsigned of_row = static_cast<unsigned>(pieces.of_row), channels = static_cast<unsigned>(p.channels);
    const unsigned row = i / of_row, piece = i - row * of_row;
    there = all < groups;
    lane = static_cast<int>(threadIdx.x) % kLanes;
    b = row / channels, d = row - b * channels, slab = b * of_row + piece;
    begin = piece * pieces.length;
    count = static_cast<int>(min(pieces.length, p.layout.length - begin));
    // As many for all groups of a warp, which exchange values.
    chunks = static_cast<int>((min(pieces.length, p.layout.length) + kLanes * kSteps<T> - 1) / (kLanes * kSteps<T>));
  }
  __device__ __forceinline__ int step(int chunk) const { return (chunk * kLanes + lane) * kSteps<T>; }  // of it
};

template <typename T, int kWidth>
struct Filter {
  float weight[kWidth], bias;

  __device__ Filter(const CausalConv1dInputs<T>& p, int64_t d) {
    bias = p.bias.data != nullptr ? p.bias.data[d * p.bias.d] : 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k] = p.weight.data[d * p.weight.row + k * p.weight.column];
  }
  // x: from kWidth - 1 steps before.
  __device__ __forceinline__ float operator()(const float* x) const {
    float a = bias;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) a = fmaf(weight[k], x[k], a);
    return a;
  }
};

// The kPast steps before step `at` of a row.
template <typename T, int kPast>
__device__ __forceinline__ void load_past(const CausalConv1dInputs<T>& p, const T* row, int64_t at, unsigned b,
                                          unsigned d, float (&past)[kPast]) {
#pragma unroll
  for (int k = 0; k < kPast; ++k)
    past[k] = at > 0                        ? widen(row[at - kPast + k])
              : p.initial_window != nullptr ? p.initial_window[(int64_t{b} * kPast + k) * p.channels + d]
                                            : 0.0f;
}

template <typename T, int kWidth, bool kSilu, int kLanes>
__global__ void __launch_bounds__(128, 8) forward_by_steps(const CausalConv1dForward<T> p, const ConvPieces pieces) {
  constexpr int kEach = kSteps<T>, kPast = kWidth - 1;
  const PieceOfRow<T, kLanes> piece(p, pieces);
  const int64_t length = p.layout.length;
  const T* const row = p.x.data + piece.b * p.x.b + piece.d * p.x.d;
  T* const to = p.y.data + piece.b * p.y.b + piece.d * p.y.d + piece.begin;
  const auto load = [&](int chunk) {
    Bits<T, kEach> steps;
    steps.load(row + piece.begin + piece.step(chunk), piece.step(chunk) < piece.count);
    return steps;
  };
  Bits<T, kEach> ahead[2] = {load(0), load(1)};  // the chunks that come next
  const Filter<T, kWidth> filter(p, piece.d);
  float carried[kPast];
  load_past<T, kPast>(p, row, piece.begin, piece.b, piece.d, carried);
  for (int chunk = 0; chunk < piece.chunks; ++chunk) {
    const int at = piece.step(chunk);
    float x[kPast + kEach], values[kEach], y[kEach];
    ahead[0].floats(values);
    ahead[0] = ahead[1];
    ahead[1] = load(chunk + 2);
#pragma unroll
    for (int k = 0; k < kEach; ++k) x[kPast + k] = values[k];
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      const float before = __shfl_up_sync(kAllLanes, x[kEach + k], 1, kLanes);
      x[k] = piece.lane == 0 ? carried[k] : before;
      carried[k] = __shfl_sync(kAllLanes, x[kEach + k], kLanes - 1, kLanes);
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      y[k] = filter(x + k);
      if constexpr (kSilu) y[k] *= sigmoid_fast(y[k]);
    }
    if (!piece.there || at >= piece.count) continue;
    store_values(to + at, y);
    if (piece.begin + at + kEach == length)
#pragma unroll
      for (int k = 0; k < kPast; ++k)
        p.final_window[(int64_t{piece.b} * kPast + k) * p.channels + piece.d] = x[kEach + k];
  }
}

// Against time: the gradients da of a chunk go into dx of the one before it.
template <typename T, int kWidth, bool kSilu, int kLanes>
__global__ void __launch_bounds__(128, 5) backward_by_steps(const CausalConv1dBackward<T> p, const ConvPieces pieces) {
  constexpr int kEach = kSteps<T>, kPast = kWidth - 1;
  const PieceOfRow<T, kLanes> piece(p, pieces);
  const int64_t length = p.layout.length, end = piece.begin + piece.count;
  const T* const x_row = p.x.data + piece.b * p.x.b + piece.d * p.x.d;
  const T* const dy_row = p.dy.data + piece.b * p.dy.b + piece.d * p.dy.d;
  T* const dx_row = p.dx.data + piece.b * p.dx.b + piece.d * p.dx.d;
  const Filter<T, kWidth> filter(p, piece.d);
  const auto slope = [&](const float* x) {  // of the activation
    if constexpr (kSilu) {
      const float a = filter(x), sigma = sigmoid_fast(a);
      return sigma * fmaf(a, 1.0f - sigma, 1.0f);
    } else {
      return 1.0f;
    }
  };
  float later[kPast] = {};  // da of the steps that follow
  if (end < length) {
    float x[2 * kPast], past[kPast];
    load_past<T, kPast>(p, x_row, end, piece.b, piece.d, past);
#pragma unroll
    for (int k = 0; k < kPast; ++k) x[k] = past[k], x[kPast + k] = widen(x_row[end + k]);
#pragma unroll
    for (int k = 0; k < kPast; ++k) later[k] = widen(dy_row[end + k]) * slope(x + k);
  }
  float dweight[kWidth] = {}, dbias = 0;
  const auto load = [&](const T* row, int chunk) {
    const int at = piece.step(chunk);
    Bits<T, kEach> steps;
    steps.load(row + piece.begin + at, chunk >= 0 && at < piece.count);
    return steps;
  };
  // The chunks that come next.
  Bits<T, kEach> x_ahead[2] = {load(x_row, piece.chunks - 1), load(x_row, piece.chunks - 2)},
                 dy_ahead[2] = {load(dy_row, piece.chunks - 1), load(dy_row, piece.chunks - 2)};
  float before_piece[kPast];
  load_past<T, kPast>(p, x_row, piece.begin, piece.b, piece.d, before_piece);
  for (int chunk = piece.chunks - 1; chunk >= 0; --chunk) {
    const int64_t at = piece.begin + piece.step(chunk);
    float x[kPast + kEach], values[kEach], earlier[kEach], dy[kEach], da[kEach + kPast], dx[kEach];
    x_ahead[0].floats(values);
    dy_ahead[0].floats(dy);
    x_ahead[0] = x_ahead[1], dy_ahead[0] = dy_ahead[1];
    x_ahead[1] = load(x_row, chunk - 2), dy_ahead[1] = load(dy_row, chunk - 2);
    x_ahead[0].floats(earlier);
#pragma unroll
    for (int k = 0; k < kEach; ++k) x[kPast + k] = values[k];
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      const float before = __shfl_up_sync(kAllLanes, x[kEach + k], 1, kLanes);
      const float chunk_before = __shfl_sync(kAllLanes, earlier[kEach - kPast + k], kLanes - 1, kLanes);
      x[k] = piece.lane > 0 ? before : chunk > 0 ? chunk_before : before_piece[k];
    }
    const bool inside = at < end;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      da[k] = inside ? dy[k] * slope(x + k) : 0.0f;  // beyond, filters may overflow
      dbias += da[k];
#pragma unroll
      for (int w = 0; w < kWidth; ++w) dweight[w] = fmaf(da[k], x[k + w], dweight[w]);
    }
#pragma unroll
    for (int k = 0; k < kPast; ++k) {
      const float after = __shfl_down_sync(kAllLanes, da[k], 1, kLanes);
      da[kEach + k] = piece.lane == kLanes - 1 ? later[k] : after;
      later[k] = __shfl_sync(kAllLanes, da[k], 0, kLanes);
    }
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      dx[k] = 0;
#pragma unroll
      for (int w = 0; w < kWidth; ++w) dx[k] = fmaf(da[k + kPast - w], filter.weight[w], dx[k]);
    }
    if (!piece.there || !inside) continue;
    const int64_t windows = int64_t{piece.b} * kPast * p.channels + piece.d;
    if (at + kEach == length && p.dfinal_window != nullptr)
#pragma unroll
      for (int k = 0; k < kPast; ++k) dx[kEach - kPast + k] += p.dfinal_window[windows + k * p.channels];
    store_values(dx_row + at, dx);
    if (at == 0 && p.dinitial_window != nullptr)
#pragma unroll
      for (int k = 0; k < kPast; ++k) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w <= k; ++w) sum = fmaf(da[k - w], filter.weight[w], sum);
        p.dinitial_window[windows + k * p.channels] = sum;
      }
  }
  float* const sums = static_cast<float*>(p.workspace) + int64_t{piece.slab} * (kWidth + 1) * p.channels + piece.d;
#pragma unroll
  for (int w = 0; w <= kWidth; ++w) {
    const float sum = sum_lanes(w < kWidth ? dweight[w] : dbias, kLanes);
    if (piece.there && piece.lane == 0) sums[w * p.channels] = sum;
  }
}

// f<kWidth, kSilu, kLanes>(blocks): lanes as many as a row has work for.
template <typename T, typename F>
void launch(const CausalConv1dInputs<T>& p, const ConvPieces& pieces, const F& f) {
  const auto with_lanes = [&]<int kWidth, bool kSilu>() {
    const auto with = [&]<int kLanes>() {
      const int64_t threads = p.layout.batch * p.channels * pieces.of_row * kLanes;
      f.template operator()<kWidth, kSilu, kLanes>(static_cast<unsigned>((threads + 127) / 128));
    };
    p.layout.length <= 8 * kSteps<T> ? with.template operator()<8>() : with.template operator()<32>();
  };
  const auto with_activation = [&]<int kWidth>() {
    p.activation == ConvActivation::kSilu ? with_lanes.template operator()<kWidth, true>()
                                          : with_lanes.template operator()<kWidth, false>();
  };
  if (p.width == 2) with_activation.template operator()<2>();
  if (p.width == 3) with_activation.template operator()<3>();
  if (p.width == 4) with_activation.template operator()<4>();
}

}  // namespace

template <typename T>
ConvPieces causal_conv1d_pieces(const CausalConv1dInputs<T>& p) {
  constexpr int64_t kChunk = 32 * kSteps<T>, kEnough = 16384;  // warps
  ConvPieces pieces{8 * kChunk, 0};
  while (pieces.length > kChunk && p.layout.batch * p.channels * (p.layout.length / pieces.length) < kEnough)
    pieces.length /= 2;
  pieces.of_row = (p.layout.length + pieces.length - 1) / pieces.length;
  return pieces;
}

template <typename T>
void causal_conv1d_forward_by_steps(const CausalConv1dForward<T>& p, CudaStream stream) {
  const ConvPieces pieces = causal_conv1d_pieces<T>(p);
  launch<T>(p, pieces, [&]<int kWidth, bool kSilu, int kLanes>(unsigned blocks) {
    forward_by_steps<T, kWidth, kSilu, kLanes><<<blocks, 128, 0, stream>>>(p, pieces);
  });
  check_launch("causal_conv1d, forward by steps");
}

template <typename T>
void causal_conv1d_backward_by_steps(const CausalConv1dBackward<T>& p, CudaStream stream) {
  const ConvPieces pieces = causal_conv1d_pieces<T>(p);
  launch<T>(p, pieces, [&]<int kWidth, bool kSilu, int kLanes>(unsigned blocks) {
    backward_by_steps<T, kWidth, kSilu, kLanes><<<blocks, 128, 0, stream>>>(p, pieces);
  });
  check_launch("causal_conv1d, backward by steps");
  causal_conv1d_sum_slabs(p, p.layout.batch * pieces.of_row, stream);
}

#define ADDER_INSTANTIATE(T)                                                               \
  template ConvPieces causal_conv1d_pieces(const CausalConv1dInputs<T>&);                  \
  template void causal_conv1d_forward_by_steps(const CausalConv1dForward<T>&, CudaStream); \
  template void causal_conv1d_backward_by_steps(const CausalConv1dBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
