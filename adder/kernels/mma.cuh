#pragma once

#include <cuda_runtime.h>

namespace adder::kernels::cuda {

// sum (16, 8) += a (16, 16) b (16, 8) of a warp, in bfloat16 and float32, each lane's registers as the instruction
// mma.m16n8k16 has them.
__device__ __forceinline__ void multiply_16x8(float (&sum)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                              unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

}  // namespace adder::kernels::cuda
