#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "adder/kernels/async_copy.cuh"

// Hopper's instructions for tiles: copies by tensor maps, barriers in a cluster's shared memory, products of a
// warpgroup. Kernels that use them have a body only where ADDER_HAS_WGMMA is defined.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ADDER_HAS_WGMMA 1
#endif

namespace adder::kernels::cuda {

__device__ __forceinline__ void wait_barrier(unsigned barrier, unsigned parity) {
  asm volatile(
      "{\n .reg .pred p;\n"
      "again:\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      " @!p bra again;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ bool barrier_is_done(unsigned barrier, unsigned parity) {
  unsigned done;
  asm volatile(
      "{\n .reg .pred p;\n"
      " mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
// The address of the same place in another block of the cluster.
__device__ __forceinline__ unsigned of_block(unsigned address, unsigned rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
__device__ __forceinline__ void arrive(unsigned barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// kVisible: what each has written is there for the others then, which takes about a microsecond.
template <bool kVisible>
__device__ __forceinline__ void meet_cluster() {
  if constexpr (kVisible)
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  else
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}
__device__ __forceinline__ float4 load_of_cluster(unsigned address) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// A tile whose first element is (column, row) of the map; what lies outside the tensor comes as zeros.
__device__ __forceinline__ void copy_tile(unsigned to, const CUtensorMap* map, int column, int row, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}
// Kernels that are launched with leave to begin before their predecessor ends: what it wrote is there after this, and
// so is what all before it wrote.
__device__ __forceinline__ void wait_for_predecessor() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
// After wait_for_predecessor: so that a successor's beginning may rely on all but its predecessor.
__device__ __forceinline__ void let_successor_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// A value that is kept in a register rather than found again at each use.
__device__ __forceinline__ unsigned keep(unsigned value) {
  asm volatile("" : "+r"(value));
  return value;
}

// A tile of rows of 128 bytes, eight of them a pattern in which 16-byte pieces change places, at a multiple of 1,024
// bytes: the lower half of its descriptor, in units of 16 bytes; the upper half is the same for all.
__device__ __forceinline__ unsigned tile_descriptor(unsigned address) {
  return address / 16 | 1u << 16;
}
constexpr unsigned kTileDescriptorUpper = 1u << 30 | 64;  // that pattern; 1,024 bytes from eight rows to the next

#define ADDER_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define ADDER_D16(d, i) ADDER_D4(d, i), ADDER_D4(d, i + 4), ADDER_D4(d, i + 8), ADDER_D4(d, i + 12)

// d (64, kColumns) += a (64, 16) b (kColumns, 16)^T, in bfloat16 and float32. Thread t of the warpgroup has rows
// t / 32 * 16 + t % 32 / 4 and 8 further, columns 8 i + t % 4 * 2 and the next: d[4 i .. 4 i + 3].
template <int kColumns>
__device__ __forceinline__ void multiply_tiles(float (&d)[kColumns / 2], unsigned a_tile, unsigned b_tile) {
  static_assert(kColumns == 8 || kColumns == 16 || kColumns == 32 || kColumns == 64);
  const uint64_t a = uint64_t{kTileDescriptorUpper} << 32 | a_tile, b = uint64_t{kTileDescriptorUpper} << 32 | b_tile;
  if constexpr (kColumns == 8)
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, "
        "%5, p, 1, 1, 0, 0;}"
        : ADDER_D4(d, 0)
        : "l"(a), "l"(b));
  else if constexpr (kColumns == 16)
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, "
        "%5, %6, %7}, %8, %9, p, 1, 1, 0, 0;}"
        : ADDER_D4(d, 0), ADDER_D4(d, 4)
        : "l"(a), "l"(b));
  else if constexpr (kColumns == 32)
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, "
        "%5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15}, %16, %17, p, 1, 1, 0, 0;}"
        : ADDER_D16(d, 0)
        : "l"(a), "l"(b));
  else
    asm volatile(
        "{.reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, "
        "%5, %6, %7, %8, %9, %10, %11, %12, "
        "%13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, "
        "p, 1, 1, 0, 0;}"
        : ADDER_D16(d, 0), ADDER_D16(d, 16)
        : "l"(a), "l"(b));
}
template <int kCount>
__device__ __forceinline__ void begin_products(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void end_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kPending groups are under way.
template <int kPending, int kCount>
__device__ __forceinline__ void wait_products(float (&d)[kCount]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

}  // namespace adder::kernels::cuda
