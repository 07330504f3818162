#pragma once

#include "adder/kernels/selective_scan.h"

namespace adder::kernels::cuda {

// One sequence's place in the batch, walked in the direction of time. cu_seqlens lies on the device; what it holds is
// clamped, so that a wrong value reads no memory that is not the input's.
struct SequenceRows {
  int64_t b, first, step, length, chunk;

  __device__ SequenceRows(const SequenceLayout& layout, int64_t s) {
    int64_t begin = 0;
    length = layout.length;
    b = s;
    chunk = s * ((layout.length + kCudaScanChunk - 1) / kCudaScanChunk);
    if (layout.cu_seqlens != nullptr) {
      b = 0;
      begin = min(max(layout.cu_seqlens[s], int64_t{0}), layout.length);
      length = min(max(layout.cu_seqlens[s + 1] - begin, int64_t{0}), layout.length - begin);
      chunk = begin / kCudaScanChunk + s;  // at least as far from the next one's as this sequence has chunks
    }
    first = layout.reverse ? begin + length - 1 : begin;
    step = layout.reverse ? -1 : 1;
  }
  // Goes on as a part of the sequence, which may be empty. `begin` is a multiple of kCudaScanChunk.
  __device__ void cut(int64_t begin, int64_t steps) {
    begin = min(begin, length);
    first += step * begin;
    chunk += begin / kCudaScanChunk;
    length = min(steps, length - begin);
  }
  __device__ int64_t time(int64_t j) const { return first + step * j; }
};

__device__ __forceinline__ bool counts(const View2<const bool>& mask, int64_t b, int64_t t) {
  return mask.data == nullptr || mask.data[b * mask.row + t * mask.column];
}

}  // namespace adder::kernels::cuda
