#include "adder/kernels/async_copy.cuh"
#include "adder/kernels/causal_conv1d_cuda.h"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/sequence_rows.cuh"

namespace adder::kernels::cuda {
namespace {

// Channels of a thread, which walks through time with the last K - 1 inputs in registers.
template <typename T>
constexpr int kForwardChannels = 16 / static_cast<int>(sizeof(T));
// The steps of a thread: more of them where enough threads are left; the rows before them are read twice.
template <typename T>
int64_t steps_of_thread(const CausalConv1dInputs<T>& p) {
  const int64_t of_64 = p.channels / kForwardChannels<T> * causal_conv1d_runs(p.layout, 64);
  return of_64 >= 60000 ? 64 : 32;
}

// Rows of one tensor that a thread has asked for ahead, kRows at a time: each thread copies and reads its own channels
// only. What is under way takes no registers.
template <typename T, int kChannels, int kRows, int kStages>
struct RowRing {
  using Rows = T[kStages * kRows][128][kChannels];
  T (*rows)[128][kChannels];
  const T* next;
  int64_t step;

  __device__ RowRing(Rows& shared, const T* first, int64_t step_) : rows(shared), next(first), step(step_) {}
  __device__ __forceinline__ void fetch(int stage) {
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      copy_piece<kChannels* static_cast<int>(sizeof(T))>(rows[stage * kRows + k][threadIdx.x], next + k * step);
    next += kRows * step;
  }
  __device__ __forceinline__ void read(int stage, int k, float (&to)[kChannels]) const {
    Packed<T, kChannels> bits;
    bits.load(rows[stage * kRows + k][threadIdx.x]);
    bits.floats(to);
  }
};

// Where a thread begins that walks at most `steps` steps of one sequence. Packed sequences begin runs of their own:
// those of sequence s are from cu_seqlens[s] / steps + s on, at least as many as it fills.
struct Run {
  int64_t s, j0;

  __device__ Run(const SequenceLayout& layout, int64_t i, int64_t steps) {
    if (layout.cu_seqlens == nullptr) {
      const int64_t each = (layout.length + steps - 1) / steps;
      s = i / each;
      j0 = i % each * steps;
      return;
    }
    int64_t low = 0, high = layout.sequences;
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (layout.cu_seqlens[middle] / steps + middle <= i ? low : high) = middle;
    }
    s = low;
    j0 = (i - layout.cu_seqlens[low] / steps - low) * steps;
  }
  // An empty sequence has windows to pass on.
  __device__ bool has_work(const SequenceRows& rows) const { return j0 == 0 || (j0 > 0 && j0 < rows.length); }
};

// Row j of what the convolution sees: the initial window before the first step.
template <typename T, int kChannels>
__device__ __forceinline__ void read_row(const CausalConv1dInputs<T>& p, const SequenceRows& rows, int64_t s, int64_t d,
                                         int64_t j, float (&x)[kChannels]) {
  if (j >= 0) {
    Packed<T, kChannels> bits;
    bits.load(p.x.data + rows.b * p.x.b + rows.time(j) * p.x.l + d);
    bits.floats(x);
    return;
  }
#pragma unroll
  for (int c = 0; c < kChannels; ++c)
    x[c] = p.initial_window != nullptr ? p.initial_window[(s * (p.width - 1) + p.width - 1 + j) * p.channels + d + c]
                                       : 0.0f;
}

template <typename T, int kWidth, bool kSilu>
__global__ void __launch_bounds__(128, 4) fast_forward(const CausalConv1dForward<T> p, int64_t steps, int64_t runs) {
  constexpr int kChannels = kForwardChannels<T>, kAhead = 4, kPast = kWidth - 1, kStages = 4;
  using Ring = RowRing<T, kChannels, kAhead, kStages>;
  __shared__ __align__(16) typename Ring::Rows shared;
  const int64_t columns = p.channels / kChannels, i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * runs) return;
  const Run run(p.layout, i / columns, steps);
  const int64_t d = i % columns * kChannels, s = run.s, j0 = run.j0;
  const SequenceRows rows(p.layout, s);
  if (!run.has_work(rows)) return;
  const int64_t x_step = rows.step * p.x.l, y_step = rows.step * p.y.l;
  const T* from = p.x.data + rows.b * p.x.b + rows.time(j0) * p.x.l + d;
  T* to = p.y.data + rows.b * p.y.b + rows.time(j0) * p.y.l + d;
  const int count = static_cast<int>(min(rows.length - j0, steps));
  const int groups = count / kAhead;
  Ring ring(shared, from, x_step);
#pragma unroll
  for (int g = 0; g < kStages - 1; ++g) {
    if (g < groups) ring.fetch(g);
    end_copies();
  }
  float weight[kWidth][kChannels], bias[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    bias[c] = p.bias.data != nullptr ? p.bias.data[(d + c) * p.bias.d] : 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k][c] = p.weight.data[(d + c) * p.weight.row + k * p.weight.column];
  }
  // The last K - 1 rows, and those of the steps at hand.
  float x[kPast + kAhead][kChannels];
#pragma unroll
  for (int k = 0; k < kPast; ++k) read_row(p, rows, s, d, j0 - kPast + k, x[k]);
  const auto output = [&](int k, float(&y)[kChannels]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      y[c] = bias[c];
#pragma unroll
      for (int w = 0; w < kWidth; ++w) y[c] = fmaf(weight[w][c], x[k + w][c], y[c]);
      if constexpr (kSilu) y[c] *= sigmoid_fast(y[c]);
    }
  };
  const auto shift = [&](int by) {
#pragma unroll
    for (int k = 0; k < kPast; ++k)
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[k][c] = x[k + by][c];
  };
  for (int g = 0; g < groups; ++g) {
    if (g + kStages - 1 < groups) ring.fetch((g + kStages - 1) % kStages);
    end_copies();
    wait_copies<kStages - 1>();
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      ring.read(g % kStages, k, x[kPast + k]);
      float y[kChannels];
      output(k, y);
      store_values(to + k * y_step, y);
    }
    shift(kAhead);
    to += kAhead * y_step;
  }
  from += groups * kAhead * x_step;
  for (int j = groups * kAhead; j < count; ++j) {
    Packed<T, kChannels> bits;
    bits.load(from);
    bits.floats(x[kPast]);
    float y[kChannels];
    output(0, y);
    store_values(to, y);
    shift(1);
    from += x_step;
    to += y_step;
  }
  if (j0 + count == rows.length)
#pragma unroll
    for (int k = 0; k < kPast; ++k) store_values(p.final_window + (s * kPast + k) * p.channels + d, x[k]);
}

constexpr int kBackwardChannels = 4;

// A thread walks one slab of one sequence, four channels: da_j from x_(j - K + 1) .. x_j, and dx_(j - K + 1) from
// da_(j - K + 1) .. da_j; it goes K - 1 steps further than its slab for the latter.
template <typename T, int kWidth, bool kSilu>
__global__ void __launch_bounds__(128, 4) fast_backward(const CausalConv1dBackward<T> p, ConvSlabs slabs) {
  constexpr int kChannels = kBackwardChannels, kAhead = 4, kPast = kWidth - 1, kStages = 8 / sizeof(T);
  using Ring = RowRing<T, kChannels, kAhead, kStages>;
  __shared__ __align__(16) typename Ring::Rows x_shared, dy_shared;
  const int64_t columns = p.channels / kChannels, i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i >= columns * slabs.count) return;
  const Run run(p.layout, i / columns, slabs.length);
  const int64_t d = i % columns * kChannels, s = run.s, j0 = run.j0;
  const SequenceRows rows(p.layout, s);
  float* const sums = static_cast<float*>(p.workspace) + i / columns * (kWidth + 1) * p.channels + d;
  if (rows.length == 0 || !run.has_work(rows)) {
    const float zeros[kChannels] = {};
    for (int w = 0; w <= kWidth; ++w) store_values(sums + w * p.channels, zeros);
    if (j0 == 0 && p.dinitial_window != nullptr)
      for (int64_t k = s * kPast; k < (s + 1) * kPast; ++k)
        for (int64_t at = k * p.channels + d; at < k * p.channels + d + kChannels; ++at)
          p.dinitial_window[at] = p.dfinal_window != nullptr ? p.dfinal_window[at] : 0.0f;
    return;
  }
  float weight[kWidth][kChannels], dweight[kWidth][kChannels] = {}, dbias[kChannels] = {}, bias[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    bias[c] = p.bias.data != nullptr ? p.bias.data[(d + c) * p.bias.d] : 0.0f;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) weight[k][c] = p.weight.data[(d + c) * p.weight.row + k * p.weight.column];
  }
  float x[kPast + kAhead][kChannels], da[kPast + kAhead][kChannels] = {};
#pragma unroll
  for (int k = 0; k < kPast; ++k) read_row(p, rows, s, d, j0 - kPast + k, x[k]);
  // Row `k` past the last K - 1, of which x and dy are there: da, and the sums that it goes into where it is the
  // slab's.
  const auto advance = [&](int k, bool own) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float& g = da[kPast + k][c];
      if constexpr (kSilu) {
        float a = bias[c];
#pragma unroll
        for (int w = 0; w < kWidth; ++w) a = fmaf(weight[w][c], x[k + w][c], a);
        const float sigma = sigmoid_fast(a);
        g *= sigma * fmaf(a, 1.0f - sigma, 1.0f);
      }
      const float counted = own ? g : 0.0f;
#pragma unroll
      for (int w = 0; w < kWidth; ++w) dweight[w][c] = fmaf(counted, x[k + w][c], dweight[w][c]);
      dbias[c] += counted;
    }
  };
  const auto gradient = [&](int k, float(&dx)[kChannels]) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      dx[c] = 0;
#pragma unroll
      for (int w = 0; w < kWidth; ++w) dx[c] = fmaf(da[k + w][c], weight[kWidth - 1 - w][c], dx[c]);
    }
  };
  const auto shift = [&](int by) {
#pragma unroll
    for (int k = 0; k < kPast; ++k)
#pragma unroll
      for (int c = 0; c < kChannels; ++c) x[k][c] = x[k + by][c], da[k][c] = da[k + by][c];
  };
  const int64_t last = min(j0 + slabs.length, rows.length), beyond = last + kPast;
  int64_t j = j0;
  // A step of which anything may be out of range.
  const auto careful = [&] {
    const bool real = j < rows.length;
    Packed<T, kChannels> x_bits, dy_bits;
    const int64_t t = rows.time(real ? j : rows.length - 1);
    x_bits.load(p.x.data + rows.b * p.x.b + t * p.x.l + d);
    dy_bits.load(p.dy.data + rows.b * p.dy.b + t * p.dy.l + d);
    x_bits.floats(x[kPast]);
    dy_bits.floats(da[kPast]);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) x[kPast][c] = real ? x[kPast][c] : 0.0f;
    advance(0, j < last);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) da[kPast][c] = real ? da[kPast][c] : 0.0f;
    float dx[kChannels];
    gradient(0, dx);
    const int64_t out = j - kPast, from_end = out - rows.length + kPast;
    if (from_end >= 0 && p.dfinal_window != nullptr)
#pragma unroll
      for (int c = 0; c < kChannels; ++c) dx[c] += p.dfinal_window[(s * kPast + from_end) * p.channels + d + c];
    if (out >= j0 && out < last)
      store_values(p.dx.data + rows.b * p.dx.b + rows.time(out) * p.dx.l + d, dx);
    else if (out < 0 && j0 == 0 && p.dinitial_window != nullptr)
      store_values(p.dinitial_window + (s * kPast + out + kPast) * p.channels + d, dx);
    shift(1);
    ++j;
  };
  for (int k = 0; k < kPast && j < beyond; ++k) careful();
  // Steps that are the slab's, as are those whose gradients they complete.
  const int64_t x_step = rows.step * p.x.l, dy_step = rows.step * p.dy.l, dx_step = rows.step * p.dx.l;
  Ring x_ring(x_shared, p.x.data + rows.b * p.x.b + rows.time(j) * p.x.l + d, x_step);
  Ring dy_ring(dy_shared, p.dy.data + rows.b * p.dy.b + rows.time(j) * p.dy.l + d, dy_step);
  T* dx_at = p.dx.data + rows.b * p.dx.b + rows.time(j - kPast) * p.dx.l + d;
  const int64_t whole = min(last, rows.length - kPast);
  const int groups = static_cast<int>(max(whole - j, int64_t{0})) / kAhead;
  const auto fetch = [&](int g) {
    if (g < groups) {
      x_ring.fetch(g % kStages);
      dy_ring.fetch(g % kStages);
    }
    end_copies();
  };
#pragma unroll
  for (int g = 0; g < kStages - 1; ++g) fetch(g);
  for (int g = 0; g < groups; ++g, j += kAhead) {
    fetch(g + kStages - 1);
    wait_copies<kStages - 1>();
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      x_ring.read(g % kStages, k, x[kPast + k]);
      dy_ring.read(g % kStages, k, da[kPast + k]);
      advance(k, true);
      float dx[kChannels];
      gradient(k, dx);
      store_values(dx_at + k * dx_step, dx);
    }
    shift(kAhead);
    dx_at += kAhead * dx_step;
  }
  while (j < beyond) careful();
#pragma unroll
  for (int w = 0; w < kWidth; ++w) store_values(sums + w * p.channels, dweight[w]);
  store_values(sums + kWidth * p.channels, dbias);
}

template <typename F>
void with_width(int64_t width, const F& f) {
  if (width == 2) f.template operator()<2>();
  if (width == 3) f.template operator()<3>();
  if (width == 4) f.template operator()<4>();
}

}  // namespace

template <typename T>
void causal_conv1d_forward_fast(const CausalConv1dForward<T>& p, CudaStream stream) {
  const int64_t steps = steps_of_thread(p), runs = causal_conv1d_runs(p.layout, steps);
  const int64_t threads = p.channels / kForwardChannels<T> * runs;
  const auto blocks = static_cast<unsigned>((threads + 127) / 128);
  with_width(p.width, [&]<int kWidth>() {
    if (p.activation == ConvActivation::kSilu)
      fast_forward<T, kWidth, true><<<blocks, 128, 0, stream>>>(p, steps, runs);
    else
      fast_forward<T, kWidth, false><<<blocks, 128, 0, stream>>>(p, steps, runs);
  });
  check_launch("causal_conv1d, fast forward");
}

template <typename T>
void causal_conv1d_backward_fast(const CausalConv1dBackward<T>& p, CudaStream stream) {
  const ConvSlabs slabs = causal_conv1d_slabs<T>(p);
  const int64_t threads = p.channels / kBackwardChannels * slabs.count;
  const auto blocks = static_cast<unsigned>((threads + 127) / 128);
  with_width(p.width, [&]<int kWidth>() {
    if (p.activation == ConvActivation::kSilu)
      fast_backward<T, kWidth, true><<<blocks, 128, 0, stream>>>(p, slabs);
    else
      fast_backward<T, kWidth, false><<<blocks, 128, 0, stream>>>(p, slabs);
  });
  check_launch("causal_conv1d, fast backward");
  causal_conv1d_sum_slabs(p, slabs.count, stream);
}

#define ADDER_INSTANTIATE(T)                                                           \
  template void causal_conv1d_forward_fast(const CausalConv1dForward<T>&, CudaStream); \
  template void causal_conv1d_backward_fast(const CausalConv1dBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
