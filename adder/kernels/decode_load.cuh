#pragma once

#include "adder/kernels/decode_plan.cuh"

namespace adder::kernels::cuda::decoding {

// The warps that do not compute: all weights of the step in the order of their use, and the small things of a layer on
// their way to the second cache, a layer ahead.
template <typename W>
class Loader {
 public:
  __device__ Loader(const DecodeStep<W>& p, const SharedLayout& l, unsigned char* shared)
      : p_(p),
        layers_(reinterpret_cast<const DecodeLayer<W>*>(shared + l.layers)),
        progress_(reinterpret_cast<int*>(shared + l.progress)),
        ring_(ring_in(l, shared), static_cast<int>(threadIdx.x - kThreads) / 32),
        shares_(p) {}

  __device__ void load() {
#pragma unroll 1
    for (int i = 0; i < p_.layers; ++i) {
#pragma unroll 1
      for (int matrix = 0; matrix < kMatrices; ++matrix) {
        if (matrix == kX && projects_directly<W>(p_)) continue;
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
      while (atomicOr(progress_, 0) < i - 1) __nanosleep(100);
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
    if (projects_directly<W>(p_))
      prefetch_lines(layer.x_weight + shares_.projected.begin * p_.d_inner,
                     (shares_.projected.end - shares_.projected.begin) * p_.d_inner * static_cast<int>(sizeof(W)));
    prefetch_lines(layer.dt_bias + own.begin, channels * 4);
    prefetch_lines(layer.D + own.begin, channels * 4);
    if (layer.conv_bias != nullptr) prefetch_lines(layer.conv_bias + own.begin, channels * 4);
    prefetch_lines(layer.norm_weight + shares_.model.begin, (shares_.model.end - shares_.model.begin) * 4);
  }

  const DecodeStep<W>& p_;
  const DecodeLayer<W>* layers_;
  int* progress_;
  RingWriter ring_;
  const Shares shares_;
};

}  // namespace adder::kernels::cuda::decoding
