#include "adder/kernels/decode_step.h"

#include "adder/kernels/decode_compute.cuh"
#include "adder/kernels/decode_load.cuh"

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

using namespace decoding;

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
  return std::min({processor_count(), s.d_model, kMostBlocks});
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
  if (s.rank > kNarrowBytes) return false;
  if (s.states != 8 && s.states != 16 && s.states != 32 && s.states != 64) return false;
  if (s.d_model % TileProduct<W>::kBlock != 0 || s.d_inner % TileProduct<W>::kBlock != 0 || s.rank % kVector != 0)
    return false;
  constexpr int kLargest = 1 << 20;  // places in all but the matrices and the logits are 32 bits
  if (s.d_model > kLargest || s.d_inner > kLargest) return false;
  if (s.rank * static_cast<int>(sizeof(W)) > kNarrowBytes) return false;
  const int blocks = blocks_for(s), channels = (s.d_inner + blocks - 1) / blocks;
  const int largest = std::max(kTileRows / kUnitRows, (channels + kNarrowRows - 1) / kNarrowRows);  // units of a piece
  const SharedLayout l = layout_of<W>(s, blocks, shared_memory_limit());
  if (l.units < 2 * largest) return false;
  // All blocks must be there at once.
  int device = 0, cooperative = 0, each = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device), "cudaDeviceGetAttribute");
  const auto kernel = kernel_for<W>(s.states);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.bytes), "decode_step");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kAllThreads, static_cast<size_t>(l.bytes)),
        "decode_step");
  return cooperative != 0 && each >= 1;
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
