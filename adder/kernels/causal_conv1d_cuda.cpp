#include "adder/kernels/causal_conv1d_cuda.h"

#include <algorithm>
#include <limits>

namespace adder::kernels::cuda {
namespace {

template <typename T>
bool rows_aligned(const View3<T>& v) {
  constexpr int64_t kVector = 16 / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(v.data) % 16 == 0 && v.d == 1 && v.b % kVector == 0 && v.l % kVector == 0;
}

// The same where steps lie side by side.
template <typename T>
bool steps_aligned(const View3<T>& v) {
  return rows_aligned(View3<T>{v.data, v.b, v.d, v.l});
}

}  // namespace

template <typename T>
bool causal_conv1d_takes_steps(const CausalConv1dInputs<T>& p) {
  if constexpr (std::is_same_v<T, double>) {
    (void)p;
    return false;
  } else {
    constexpr int64_t kVector = 16 / static_cast<int64_t>(sizeof(T));
    const bool any = p.layout.batch > 0 && p.layout.length > 0 && p.channels > 0;
    return any && p.width >= 2 && p.width <= 4 && p.layout.mask.data == nullptr && p.layout.cu_seqlens == nullptr &&
           !p.layout.reverse && p.layout.length % kVector == 0 && steps_aligned(p.x) &&
           p.layout.batch * p.channels * causal_conv1d_pieces(p).of_row * 32 < std::numeric_limits<int32_t>::max();
  }
}

template <typename T>
bool causal_conv1d_is_fast(const CausalConv1dInputs<T>& p) {
  if constexpr (std::is_same_v<T, double>) {
    (void)p;
    return false;
  } else {
    constexpr int64_t kVector = 16 / static_cast<int64_t>(sizeof(T));
    const int64_t threads = causal_conv1d_runs(p.layout, 32) * (p.channels / kVector + 1);
    return p.width >= 2 && p.width <= 4 && p.layout.mask.data == nullptr && p.layout.length > 0 && p.channels > 0 &&
           p.channels % kVector == 0 && rows_aligned(p.x) && threads < std::numeric_limits<int32_t>::max();
  }
}

template <typename T>
ConvSlabs causal_conv1d_slabs(const CausalConv1dInputs<T>& p) {
  ConvSlabs slabs;
  if (causal_conv1d_takes_steps(p)) {
    if constexpr (!std::is_same_v<T, double>) {
      const ConvPieces pieces = causal_conv1d_pieces(p);
      slabs = {pieces.length, p.layout.batch * pieces.of_row};
    }
  } else if (causal_conv1d_is_fast(p)) {  // a slab is of one sequence
    slabs.length = causal_conv1d_runs(p.layout, 128) * p.channels >= 240000 ? 128 : 64;
    slabs.count = causal_conv1d_runs(p.layout, slabs.length);
  } else {
    const int64_t steps = p.layout.batch * p.layout.length;
    slabs.length = std::max<int64_t>(32, (steps + 255) / 256);
    slabs.count = (steps + slabs.length - 1) / slabs.length;
  }
  return slabs;
}

template <typename T>
int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<T>& p) {
  return causal_conv1d_slabs(p).count * (p.width + 1) * p.channels * static_cast<int64_t>(sizeof(Accumulator<T>));
}

template <typename T>
void causal_conv1d_forward(const CausalConv1dForward<T>& p, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (causal_conv1d_takes_steps<T>(p) && steps_aligned(p.y)) return causal_conv1d_forward_by_steps(p, stream);
    if (causal_conv1d_is_fast<T>(p) && rows_aligned(p.y)) return causal_conv1d_forward_fast(p, stream);
  }
  causal_conv1d_forward_generic(p, stream);
}

template <typename T>
void causal_conv1d_backward(const CausalConv1dBackward<T>& p, CudaStream stream) {
  if constexpr (!std::is_same_v<T, double>) {
    if (causal_conv1d_takes_steps<T>(p) && steps_aligned(p.dx) && steps_aligned(p.dy))
      return causal_conv1d_backward_by_steps(p, stream);
    if (causal_conv1d_is_fast<T>(p) && rows_aligned(p.dx) && rows_aligned(p.dy))
      return causal_conv1d_backward_fast(p, stream);
  }
  causal_conv1d_backward_generic(p, stream);
}

#define ADDER_INSTANTIATE(T)                                                             \
  template bool causal_conv1d_takes_steps(const CausalConv1dInputs<T>&);                 \
  template bool causal_conv1d_is_fast(const CausalConv1dInputs<T>&);                     \
  template ConvSlabs causal_conv1d_slabs(const CausalConv1dInputs<T>&);                  \
  template int64_t causal_conv1d_backward_workspace_bytes(const CausalConv1dInputs<T>&); \
  template void causal_conv1d_forward(const CausalConv1dForward<T>&, CudaStream);        \
  template void causal_conv1d_backward(const CausalConv1dBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
