#pragma once

struct CUstream_st;

namespace adder::kernels {

// What cudaStream_t is, without CUDA's headers. Null: the default stream.
using CudaStream = CUstream_st*;

}  // namespace adder::kernels
