#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "adder/kernels/cuda_stream.h"

// Launching kernels, and what threads of a warp do together.
namespace adder::kernels::cuda {

// A fault of the CUDA runtime: no device, out of memory, a broken launch.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) +
                             ")");
}

// After each launch: what is wrong with the launch itself.
inline void check_launch(const char* kernel) {
  check(cudaGetLastError(), kernel);
}

// Bytes of shared memory that a block of the current device can have.
inline int shared_memory_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

inline int processor_count() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  return count;
}

// Blocks for `tasks` pieces of work that threads walk through with the grid as their stride: any number of pieces is
// served by a grid that the hardware allows.
inline unsigned grid_for(int64_t tasks, int64_t per_block) {
  constexpr int64_t kMost = int64_t{1} << 20;
  return static_cast<unsigned>(std::clamp<int64_t>((tasks + per_block - 1) / per_block, 1, kMost));
}

constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The sum over the `width` lanes (a power of two) that share lane / width; each of them has it.
template <typename R>
__device__ __forceinline__ R sum_lanes(R x, int width) {
  for (int step = width / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
// The sum over the lanes with the same lane % width.
template <typename R>
__device__ __forceinline__ R sum_across(R x, int width) {
  for (int step = width; step < 32; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

}  // namespace adder::kernels::cuda
