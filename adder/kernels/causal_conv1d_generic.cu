#include "adder/kernels/causal_conv1d_cuda.h"
#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_numbers.cuh"
#include "adder/kernels/sequence_rows.cuh"

namespace adder::kernels::cuda {
namespace {

// Walks backwards through what the convolution sees: from step j of a sequence to its first, masked steps left out,
// then through the initial window from its last row, then zeros.
template <typename T>
class Backwards {
 public:
  using R = Accumulator<T>;
  __device__ Backwards(const CausalConv1dInputs<T>& p, const SequenceRows& rows, int64_t s, int64_t d, int64_t j)
      : p_(p), rows_(rows), s_(s), d_(d), j_(j), window_(p.width - 2) {}

  __device__ R next() {
    while (j_ >= 0) {
      const int64_t t = rows_.time(j_--);
      if (counts(p_.layout.mask, rows_.b, t)) return widen(p_.x.data[rows_.b * p_.x.b + t * p_.x.l + d_ * p_.x.d]);
    }
    if (window_ < 0 || p_.initial_window == nullptr) return 0;
    return p_.initial_window[(s_ * (p_.width - 1) + window_--) * p_.channels + d_];
  }

 private:
  const CausalConv1dInputs<T>& p_;
  const SequenceRows& rows_;
  int64_t s_, d_, j_, window_;
};

template <typename T>
__device__ Accumulator<T> before_activation(const CausalConv1dInputs<T>& p, const SequenceRows& rows, int64_t s,
                                            int64_t d, int64_t j) {
  Accumulator<T> sum = p.bias.data != nullptr ? p.bias.data[d * p.bias.d] : 0;
  Backwards<T> x(p, rows, s, d, j);
  for (int64_t k = p.width - 1; k >= 0; --k) sum += p.weight.data[d * p.weight.row + k * p.weight.column] * x.next();
  return sum;
}

// The gradient of what goes into the activation at a step that counts.
template <typename T>
__device__ Accumulator<T> d_before_activation(const CausalConv1dBackward<T>& p, const SequenceRows& rows, int64_t s,
                                              int64_t d, int64_t j) {
  using R = Accumulator<T>;
  R da = widen(p.dy.data[rows.b * p.dy.b + rows.time(j) * p.dy.l + d * p.dy.d]);
  if (p.activation == ConvActivation::kSilu) {
    const R a = before_activation<T>(p, rows, s, d, j), sigma = sigmoid(a);
    da *= sigma * (R(1) + a * (R(1) - sigma));
  }
  return da;
}

// The sequence of a step: the row, or by search among the packed ones.
__device__ int64_t sequence_of(const SequenceLayout& layout, int64_t b, int64_t t) {
  if (layout.cu_seqlens == nullptr) return b;
  int64_t low = 0, high = layout.sequences;  // cu_seqlens[low] <= t < cu_seqlens[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (layout.cu_seqlens[middle] <= t ? low : high) = middle;
  }
  return low;
}

__device__ __forceinline__ int64_t place_of(const SequenceRows& rows, int64_t t) {
  return (t - rows.first) * rows.step;
}

template <typename T>
__global__ void forward_steps(const CausalConv1dForward<T> p) {
  using R = Accumulator<T>;
  const int64_t size = p.layout.batch * p.layout.length * p.channels;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t d = i % p.channels, t = i / p.channels % p.layout.length, b = i / p.channels / p.layout.length;
    R y = 0;
    if (counts(p.layout.mask, b, t)) {
      const int64_t s = sequence_of(p.layout, b, t);
      const SequenceRows rows(p.layout, s);
      y = before_activation<T>(p, rows, s, d, place_of(rows, t));
      if (p.activation == ConvActivation::kSilu) y *= sigmoid(y);
    }
    p.y.data[b * p.y.b + t * p.y.l + d * p.y.d] = narrow<T>(y);
  }
}

template <typename T>
__global__ void final_windows(const CausalConv1dForward<T> p) {
  const int64_t size = p.layout.sequences * p.channels, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t d = i % p.channels, s = i / p.channels;
    const SequenceRows rows(p.layout, s);
    Backwards<T> x(p, rows, s, d, rows.length - 1);
    for (int64_t r = p.width - 2; r >= 0; --r) p.final_window[(s * (p.width - 1) + r) * p.channels + d] = x.next();
  }
}

// dx_j = sum over i of da_(j + i) weight_(K - 1 - i): steps that count, then the final window's gradient.
template <typename T>
__global__ void backward_steps(const CausalConv1dBackward<T> p) {
  using R = Accumulator<T>;
  const int64_t size = p.layout.batch * p.layout.length * p.channels;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t d = i % p.channels, t = i / p.channels % p.layout.length, b = i / p.channels / p.layout.length;
    R dx = 0;
    if (counts(p.layout.mask, b, t)) {
      const int64_t s = sequence_of(p.layout, b, t);
      const SequenceRows rows(p.layout, s);
      int64_t k = p.width - 1;
      for (int64_t j = place_of(rows, t); j < rows.length && k >= 0; ++j)
        if (counts(p.layout.mask, rows.b, rows.time(j)))
          dx += d_before_activation<T>(p, rows, s, d, j) * p.weight.data[d * p.weight.row + k-- * p.weight.column];
      if (k >= 0 && p.dfinal_window != nullptr) dx += p.dfinal_window[(s * (p.width - 1) + k) * p.channels + d];
    }
    p.dx.data[b * p.dx.b + t * p.dx.l + d * p.dx.d] = narrow<T>(dx);
  }
}

template <typename T>
__global__ void initial_windows(const CausalConv1dBackward<T> p) {
  using R = Accumulator<T>;
  const int64_t window = p.width - 1, size = p.layout.sequences * window * p.channels;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t d = i % p.channels, m = i / p.channels % window, s = i / p.channels / window;
    const SequenceRows rows(p.layout, s);
    R sum = 0;
    int64_t k = m;
    for (int64_t j = 0; j < rows.length && k >= 0; ++j)
      if (counts(p.layout.mask, rows.b, rows.time(j)))
        sum += d_before_activation<T>(p, rows, s, d, j) * p.weight.data[d * p.weight.row + k-- * p.weight.column];
    if (k >= 0 && p.dfinal_window != nullptr) sum += p.dfinal_window[(s * window + k) * p.channels + d];
    p.dinitial_window[i] = sum;
  }
}

// A thread adds one slab's steps to one channel's sums.
template <typename T>
__global__ void weight_sums(const CausalConv1dBackward<T> p, ConvSlabs slabs) {
  using R = Accumulator<T>;
  R* const sums = static_cast<R*>(p.workspace);
  const int64_t size = slabs.count * p.channels, stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t d = i % p.channels, slab = i / p.channels;
    R* const own = sums + slab * (p.width + 1) * p.channels + d;
    for (int64_t k = 0; k <= p.width; ++k) own[k * p.channels] = 0;
    const int64_t last = min((slab + 1) * slabs.length, p.layout.batch * p.layout.length);
    for (int64_t step = slab * slabs.length; step < last; ++step) {
      const int64_t b = step / p.layout.length, t = step % p.layout.length;
      if (!counts(p.layout.mask, b, t)) continue;
      const int64_t s = sequence_of(p.layout, b, t);
      const SequenceRows rows(p.layout, s);
      const int64_t j = place_of(rows, t);
      const R da = d_before_activation<T>(p, rows, s, d, j);
      Backwards<T> x(p, rows, s, d, j);
      for (int64_t k = p.width - 1; k >= 0; --k) own[k * p.channels] += da * x.next();
      own[p.width * p.channels] += da;
    }
  }
}

// A sum's place in dweight (D, K) or dbias.
template <typename R>
struct StoreWeightSum {
  int64_t channels, width;
  R *dweight, *dbias;
  __device__ void operator()(int64_t i, double sum) const {
    const int64_t d = i % channels, k = i / channels;
    if (k < width)
      dweight[d * width + k] = static_cast<R>(sum);
    else if (dbias != nullptr)
      dbias[d] = static_cast<R>(sum);
  }
};

}  // namespace

template <typename T>
void causal_conv1d_forward_generic(const CausalConv1dForward<T>& p, CudaStream stream) {
  const int64_t steps = p.layout.batch * p.layout.length * p.channels, windows = p.layout.sequences * p.channels;
  if (steps > 0) forward_steps<<<grid_for(steps, 256), 256, 0, stream>>>(p);
  if (windows > 0 && p.width > 1) final_windows<<<grid_for(windows, 256), 256, 0, stream>>>(p);
  check_launch("causal_conv1d, generic forward");
}

template <typename T>
void causal_conv1d_sum_slabs(const CausalConv1dBackward<T>& p, int64_t slabs, CudaStream stream) {
  using R = Accumulator<T>;
  sum_columns(static_cast<const R*>(p.workspace), slabs, (p.width + 1) * p.channels,
              StoreWeightSum<R>{p.channels, p.width, p.dweight, p.dbias}, "causal_conv1d, sums of the backward pass",
              stream);
}

template <typename T>
void causal_conv1d_backward_generic(const CausalConv1dBackward<T>& p, CudaStream stream) {
  const int64_t steps = p.layout.batch * p.layout.length * p.channels;
  const int64_t windows = p.layout.sequences * (p.width - 1) * p.channels;
  const ConvSlabs slabs = causal_conv1d_slabs<T>(p);
  if (steps > 0) backward_steps<<<grid_for(steps, 256), 256, 0, stream>>>(p);
  if (windows > 0 && p.dinitial_window != nullptr) initial_windows<<<grid_for(windows, 256), 256, 0, stream>>>(p);
  if (slabs.count * p.channels > 0) weight_sums<<<grid_for(slabs.count * p.channels, 128), 128, 0, stream>>>(p, slabs);
  check_launch("causal_conv1d, generic backward");
  causal_conv1d_sum_slabs(p, slabs.count, stream);
}

#define ADDER_INSTANTIATE(T)                                                                \
  template void causal_conv1d_forward_generic(const CausalConv1dForward<T>&, CudaStream);   \
  template void causal_conv1d_backward_generic(const CausalConv1dBackward<T>&, CudaStream); \
  template void causal_conv1d_sum_slabs(const CausalConv1dBackward<T>&, int64_t, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
