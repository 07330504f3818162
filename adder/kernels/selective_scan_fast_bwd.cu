#include "adder/kernels/selective_scan_fast_bwd.cuh"

#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/scratch.h"

namespace adder::kernels::cuda {
namespace {

constexpr int kWarps = 4;

// dB and dC (B, L, G, N) from the blocks' parts, added in order.
template <typename T>
__global__ void sum_blocks(const float* parts, int64_t groups, int64_t group_blocks, int64_t rows, int64_t length,
                           int N, View4<T> dB, View4<T> dC) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x, size = rows * groups * 2 * N;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t row = i / (2 * N) % rows, g = i / (2 * N) / rows, which = i / N % 2, n = i % N;
    float sum = 0;
#pragma unroll 8
    for (int64_t k = 0; k < group_blocks; ++k) sum += parts[(g * group_blocks + k) * rows * 2 * N + i % (rows * 2 * N)];
    const View4<T>& out = which == 0 ? dB : dC;
    out.data[row / length * out.b + row % length * out.l + g * out.g + n * out.n] = narrow<T>(sum);
  }
}

struct Plan {
  int64_t group_blocks, blocks, rows;
  FastBackwardParts out;
  ScanParts parts;
  void* borders;
  size_t bytes;

  template <typename T>
  Plan(const SelectiveScanInputs<T>& p, void* workspace) {
    const int64_t block_channels = kWarps * BackwardTiles<T, 16, kWarps>::kChannels;
    group_blocks = (p.channels / p.groups + block_channels - 1) / block_channels;
    blocks = group_blocks * p.groups;
    rows = p.layout.batch * p.layout.length;
    Carver<float> carver(static_cast<std::byte*>(workspace));
    borders = carver.take(scan_parts_workspace_bytes(p) / static_cast<int64_t>(sizeof(float)));
    parts = scan_parts(p, borders);
    const int64_t channel_rows = parts.count * p.layout.sequences * p.channels;
    out.dBC = carver.take(blocks * rows * 2 * p.state);
    out.dA = carver.take(channel_rows * p.state);
    out.dD = carver.take(channel_rows);
    out.dbias = carver.take(channel_rows);
    bytes = carver.used();
  }
};

template <typename T>
bool is_plain(const SelectiveScanBackward<T>& p) {
  const auto outputs = [](const View3<T>& v) {
    return v.d == 1 && reinterpret_cast<uintptr_t>(v.data) % 8 == 0 && v.b % 2 == 0 && v.l % 2 == 0 && is_near<T>(v.l);
  };
  return inputs_are_plain(p) && is_near<T>(p.dy.l) && copies_by_16(p.dy.data, {p.dy.b, p.dy.l}, p.dy.d) &&
         outputs(p.du) && outputs(p.ddelta) && (p.dz.data == nullptr || outputs(p.dz));
}

template <typename T, int N, bool kGate, bool kPlain>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  using Tiles = BackwardTiles<T, N, kWarps>;
  const auto kernel = fast_backward<T, N, kGate, kPlain, kWarps, 2>;
  constexpr int kShared = static_cast<int>(sizeof(Tiles));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "selective_scan, backward");
  const int64_t bytes = (p.layout.reverse ? -1 : 1) * Tiles::kSteps * static_cast<int64_t>(sizeof(T));
  const auto stride = [&](int64_t l) { return kPlain ? static_cast<int>(bytes * l) : 0; };
  const BackwardStrides strides{
      {stride(p.u.l), stride(p.delta.l), stride(p.z.l), stride(p.B_step.l), stride(p.C_step.l), 0},
      stride(p.dy.l),
      stride(p.du.l),
      stride(p.ddelta.l),
      stride(p.dz.l)};
  const auto blocks = static_cast<unsigned>(plan.blocks * p.layout.sequences * plan.parts.count);
  kernel<<<blocks, 32 * kWarps, kShared, stream>>>(p, strides, plan.out, plan.parts);
  check_launch("selective_scan, fast backward");
}

template <typename T, int N>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  const bool plain = is_plain(p);
  if (p.z.data != nullptr)
    plain ? launch<T, N, true, true>(p, plan, stream) : launch<T, N, true, false>(p, plan, stream);
  else
    plain ? launch<T, N, false, true>(p, plan, stream) : launch<T, N, false, false>(p, plan, stream);
}

}  // namespace

template <typename T>
bool selective_scan_backward_fast_fits(const SelectiveScanInputs<T>& p) {
  const size_t bytes = p.state == 8 ? sizeof(BackwardTiles<T, 8, kWarps>) : sizeof(BackwardTiles<T, 16, kWarps>);
  return static_cast<int>(bytes) <= shared_memory_limit();
}

template <typename T>
int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>& p) {
  return static_cast<int64_t>(Plan(p, nullptr).bytes);
}

template <typename T>
void selective_scan_backward_fast(const SelectiveScanBackward<T>& p, CudaStream stream) {
  const Plan plan(p, p.workspace);
  if (plan.parts.count > 1) find_part_gradients(p, plan.parts, plan.borders, stream);
  if (plan.blocks * p.layout.sequences > 0)
    p.state == 8 ? launch<T, 8>(p, plan, stream) : launch<T, 16>(p, plan, stream);
  const auto reduce = [&](const float* parts, int64_t size, float* out) {
    if (out != nullptr)
      sum_columns(parts, plan.parts.count * p.layout.sequences, size, StoreSum<float>{out},
                  "selective_scan, sums of the backward pass", stream);
  };
  reduce(plan.out.dA, p.channels * p.state, p.dA);
  reduce(plan.out.dD, p.channels, p.dD);
  reduce(plan.out.dbias, p.channels, p.ddelta_bias);
  if (const int64_t size = plan.rows * p.groups * 2 * p.state; size > 0)
    sum_blocks<T><<<grid_for(size, 256), 256, 0, stream>>>(plan.out.dBC, p.groups, plan.group_blocks, plan.rows,
                                                           p.layout.length, static_cast<int>(p.state), p.dB_step,
                                                           p.dC_step);
  check_launch("selective_scan, sums of the backward pass");
}

#define ADDER_INSTANTIATE(T)                                                                    \
  template bool selective_scan_backward_fast_fits(const SelectiveScanInputs<T>&);               \
  template int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_backward_fast(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
