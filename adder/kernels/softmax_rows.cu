#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/softmax_rows_cuda.h"

namespace adder::kernels::cuda {
namespace {

// The larger; a NaN is larger than all.
__device__ __forceinline__ float larger(float a, float b) {
  float out;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(out) : "f"(a), "f"(b));
  return out;
}
__device__ __forceinline__ double larger(double a, double b) {
  return isnan(a) ? a : isnan(b) || b > a ? b : a;
}
__device__ __forceinline__ float exponential_of(float x) {
  return exp2_fast(kLog2E * x);
}
__device__ __forceinline__ double exponential_of(double x) {
  return exp(x);
}

template <typename Value, typename Combine>
__device__ Value reduce_block(Value x, Value* shared, const Combine& combine) {
  __syncthreads();
  shared[threadIdx.x] = x;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) combine(shared[threadIdx.x], shared[threadIdx.x + half]);
  }
  __syncthreads();
  return shared[0];
}

// kKept: the row is read once, into shared memory.
template <typename T, int kVector, bool kKept>
__global__ void softmax(const SoftmaxRows<T> p) {
  using R = Accumulator<T>;
  extern __shared__ __align__(16) char kept_shared[];
  T* const kept = reinterpret_cast<T*>(kept_shared);
  __shared__ double shared[512];
  const R scale = p.scale_there != nullptr ? *p.scale_there : p.scale;
  const int64_t step = static_cast<int64_t>(blockDim.x) * kVector;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    T* const logits = p.logits + row * p.vocab;
    const auto each = [&](const auto& f) {
      for (int64_t i = threadIdx.x * kVector; i < p.vocab; i += step) {
        const auto v = *reinterpret_cast<const Vector<T, kVector>*>((kKept ? kept : logits) + i);
        R x[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k) x[k] = widen(v.value[k]);
        f(x, i);
      }
    };
    // Each thread reads again only what it has put there itself.
    if constexpr (kKept)
      for (int64_t i = threadIdx.x * kVector; i < p.vocab; i += step)
        *reinterpret_cast<Vector<T, kVector>*>(kept + i) = *reinterpret_cast<const Vector<T, kVector>*>(logits + i);
    R largest = -static_cast<R>(INFINITY);
    each([&](const R(&x)[kVector], int64_t) {
#pragma unroll
      for (int k = 0; k < kVector; ++k) largest = larger(largest, x[k]);
    });
    largest = static_cast<R>(reduce_block<double>(largest, shared, [](double& a, double b) { a = larger(a, b); }));
    const bool nan = isnan(largest);
    const int64_t target = p.targets[row];
    const bool ignored = target == p.ignore_index, valid = target >= 0 && target < p.vocab;
    int64_t place = p.vocab;  // the first of the largest
    R part = 0;
    each([&](const R(&x)[kVector], int64_t i) {
      bool here = false;
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        part += exponential_of(x[k] - largest);
        here = here || (nan ? isnan(x[k]) : x[k] == largest);
      }
      if (!here || place < p.vocab) return;
#pragma unroll
      for (int k = kVector - 1; k >= 0; --k)
        if (nan ? isnan(x[k]) : x[k] == largest) place = i + k;
    });
    const double sum = reduce_block<double>(part, shared, [](double& a, double b) { a += b; });
    place =
        reduce_block<int64_t>(place, reinterpret_cast<int64_t*>(shared), [](int64_t& a, int64_t b) { a = min(a, b); });
    const R at_target = valid ? widen(logits[target]) : static_cast<R>(NAN);
    __syncthreads();  // the target's logit has been read
    if (threadIdx.x == 0) {
      p.predictions[row] = min(place, p.vocab - 1);
      p.losses[row] =
          ignored ? R(0) : static_cast<R>(log(sum) + (static_cast<double>(largest) - static_cast<double>(at_target)));
    }
    if (!p.write_gradient) continue;
    const R factor = ignored ? R(0) : valid ? static_cast<R>(scale / sum) : static_cast<R>(NAN);
    const R target_gradient =
        scale * static_cast<R>(exp(static_cast<double>(at_target) - static_cast<double>(largest)) / sum - 1.0);
    for (int64_t i = threadIdx.x * kVector; i < p.vocab; i += step) {
      auto v = *reinterpret_cast<const Vector<T, kVector>*>((kKept ? kept : logits) + i);
#pragma unroll
      for (int k = 0; k < kVector; ++k)
        v.value[k] = narrow<T>(ignored           ? R(0)
                               : i + k == target ? target_gradient
                                                 : exponential_of(widen(v.value[k]) - largest) * factor);
      *reinterpret_cast<Vector<T, kVector>*>(logits + i) = v;
    }
  }
}

// Up to kTeam * kEach logits: a team of lanes has a row in registers. What the target's logit leaves over is added
// beside it, so that nothing cancels where its share is nearly 1.
template <typename T, int kTeam, int kEach>
__global__ void __launch_bounds__(128) softmax_narrow(const SoftmaxRows<T> p) {
  using R = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const R scale = p.scale_there != nullptr ? *p.scale_there : p.scale;
  const int64_t teams = gridDim.x * int64_t{128 / kTeam};
  for (int64_t base = blockIdx.x * int64_t{128 / kTeam}; base < p.rows; base += teams) {
    const int64_t row = base + threadIdx.x / kTeam;
    const bool real = row < p.rows;  // a team without a row stays with the others of its warp
    T* const logits = p.logits + row * p.vocab;
    R x[kEach], largest = -static_cast<R>(INFINITY);
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = lane + k * kTeam;
      x[k] = real && i < p.vocab ? widen(logits[i]) : -static_cast<R>(INFINITY);
      largest = larger(largest, x[k]);
    }
#pragma unroll
    for (int step = kTeam / 2; step > 0; step /= 2)
      largest = larger(largest, __shfl_xor_sync(kAllLanes, largest, step));
    const bool nan = isnan(largest);
    const int64_t target = real ? p.targets[row] : p.ignore_index;
    const bool ignored = target == p.ignore_index, valid = target >= 0 && target < p.vocab;
    int place = static_cast<int>(p.vocab);
    R others = 0, own = 0, at_target = 0, e[kEach];
#pragma unroll
    for (int k = kEach - 1; k >= 0; --k) {
      const int i = lane + k * kTeam;
      e[k] = i < p.vocab ? exponential_of(x[k] - largest) : R(0);
      (i == target ? own : others) += e[k];
      at_target += i == target ? x[k] : R(0);
      if (i < p.vocab && (nan ? isnan(x[k]) : x[k] == largest)) place = i;
    }
    others = sum_lanes(others, kTeam);
    own = sum_lanes(own, kTeam);
    at_target = sum_lanes(at_target, kTeam);
#pragma unroll
    for (int step = kTeam / 2; step > 0; step /= 2) place = min(place, __shfl_xor_sync(kAllLanes, place, step));
    const R sum = others + own;
    if (lane == 0 && real) {
      p.predictions[row] = min(static_cast<int64_t>(place), p.vocab - 1);
      const R loss = own == R(1) ? log1p(others) : log(sum) + (largest - at_target);
      p.losses[row] = ignored ? R(0) : valid ? loss : static_cast<R>(NAN);
    }
    if (!p.write_gradient) continue;
    const R factor = scale / sum;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = lane + k * kTeam;
      if (real && i < p.vocab)
        logits[i] = narrow<T>(ignored       ? R(0)
                              : !valid      ? static_cast<R>(NAN)
                              : i == target ? -others * factor
                                            : e[k] * factor);
    }
  }
}

constexpr int kSumThreads = 1024;

template <typename R>
__global__ void scale_of(const int64_t* targets, int64_t rows, int64_t ignore_index, R* scale) {
  __shared__ int64_t shared[kSumThreads];
  int64_t count = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) count += targets[i] != ignore_index ? 1 : 0;
  count = reduce_block(count, shared, [](int64_t& a, int64_t b) { a += b; });
  if (threadIdx.x == 0) *scale = R(1) / static_cast<R>(max(count, int64_t{1}));
}

template <typename R>
__global__ void mean_of(const R* losses, int64_t rows, const R* scale, R* loss) {
  __shared__ double shared[kSumThreads];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < rows; i += blockDim.x) sum += losses[i];
  sum = reduce_block(sum, shared, [](double& a, double b) { a += b; });
  if (threadIdx.x == 0) *loss = static_cast<R>(sum * static_cast<double>(*scale));
}

}  // namespace

template <typename T>
void softmax_rows(const SoftmaxRows<T>& p, CudaStream stream) {
  if (p.rows == 0) return;
  if (p.vocab <= 256) {
    if (p.vocab <= 32)
      softmax_narrow<T, 8, 4><<<grid_for(p.rows, 128 / 8), 128, 0, stream>>>(p);
    else
      softmax_narrow<T, 32, 8><<<grid_for(p.rows, 128 / 32), 128, 0, stream>>>(p);
    return check_launch("linear_cross_entropy, softmax");
  }
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  const bool vectors = p.vocab % kVector == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  const int threads = p.vocab <= 4096 ? 128 : 512;
  const unsigned blocks = grid_for(p.rows, 1);
  const int64_t row_bytes = p.vocab * static_cast<int64_t>(sizeof(T));
  constexpr int64_t kMostShared = 102 * 1024;  // two blocks then share a processor
  if (vectors && row_bytes > 4096 && row_bytes <= kMostShared && shared_memory_limit() >= kMostShared) {
    const auto kernel = softmax<T, kVector, true>;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostShared)),
          "linear_cross_entropy, softmax");
    kernel<<<blocks, threads, static_cast<size_t>(row_bytes), stream>>>(p);
  } else if (vectors) {
    softmax<T, kVector, false><<<blocks, threads, 0, stream>>>(p);
  } else {
    softmax<T, 1, false><<<blocks, threads, 0, stream>>>(p);
  }
  check_launch("linear_cross_entropy, softmax");
}

template <typename R>
void target_scale(const int64_t* targets, int64_t rows, int64_t ignore_index, R* scale, CudaStream stream) {
  scale_of<<<1, kSumThreads, 0, stream>>>(targets, rows, ignore_index, scale);
  check_launch("linear_cross_entropy, count");
}

template <typename R>
void mean_loss(const R* losses, int64_t rows, const R* scale, R* loss, CudaStream stream) {
  mean_of<<<1, kSumThreads, 0, stream>>>(losses, rows, scale, loss);
  check_launch("linear_cross_entropy, mean");
}

template void softmax_rows(const SoftmaxRows<float>&, CudaStream);
template void softmax_rows(const SoftmaxRows<double>&, CudaStream);
template void softmax_rows(const SoftmaxRows<bfloat16>&, CudaStream);
template void softmax_rows(const SoftmaxRows<float16>&, CudaStream);
template void target_scale(const int64_t*, int64_t, int64_t, float*, CudaStream);
template void target_scale(const int64_t*, int64_t, int64_t, double*, CudaStream);
template void mean_loss(const float*, int64_t, const float*, float*, CudaStream);
template void mean_loss(const double*, int64_t, const double*, double*, CudaStream);

}  // namespace adder::kernels::cuda
