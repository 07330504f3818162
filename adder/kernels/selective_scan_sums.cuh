#pragma once

#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/cuda_vectors.cuh"
#include "adder/kernels/scratch.h"
#include "adder/kernels/selective_scan_cuda.h"

// Where the backward scans leave what is to be added over channels or over sequences, and the kernels that add it, in
// an order that the shape fixes.
namespace adder::kernels::cuda {

struct BackwardSums {
  int64_t group_blocks, blocks;  // blocks of channels in a group, and in all
  int64_t rows;                  // B L
  int64_t count;                 // rows of `channel`
  int64_t channel_row;           // values in one of them, a multiple of 4
  float* dBC;                    // (blocks, B L, 2, N)
  float* channel;                // (count, channel_row): dA (D, N), dD (D), ddelta_bias (D)

  template <typename T>
  BackwardSums(const SelectiveScanInputs<T>& p, int64_t block_channels, int64_t channel_rows, Carver<float>& carver) {
    group_blocks = (p.channels / p.groups + block_channels - 1) / block_channels;
    blocks = group_blocks * p.groups;
    rows = p.layout.batch * p.layout.length;
    count = channel_rows;
    channel_row = (p.channels * (p.state + 2) + 3) / 4 * 4;
    dBC = carver.take(blocks * rows * 2 * p.state);
    channel = carver.take(count * channel_row);
  }
  // A channel's dD; ddelta_bias follows p.channels values later.
  __device__ float* skip_sum(int64_t k, int64_t channels, int N, int64_t d) const {
    return channel + k * channel_row + channels * N + d;
  }
  __device__ float* A_sum(int64_t k, int N, int64_t d) const { return channel + k * channel_row + d * N; }
};

// dB and dC (B, L, G, N) from the blocks' parts; a thread adds every blockDim.y-th part of four states.
template <typename T, int N>
__global__ void __launch_bounds__(256)
    sum_blocks(const BackwardSums sums, int64_t groups, int64_t length, View4<T> dB, View4<T> dC) {
  constexpr int kOfRow = 2 * N / 4;
  __shared__ float4 shared[8][32];
  const int x = static_cast<int>(threadIdx.x), y = static_cast<int>(threadIdx.y);
  const int64_t i = blockIdx.x * int64_t{32} + x, row = i / kOfRow;
  const bool is_B = i % kOfRow < N / 4;
  T* const data = is_B ? dB.data : dC.data;
  const int64_t out_b = is_B ? dB.b : dC.b, out_l = is_B ? dB.l : dC.l;
  const int64_t out_g = is_B ? dB.g : dC.g, out_n = is_B ? dB.n : dC.n;
  const int64_t n = i % (N / 4) * 4;
  const int64_t b = sums.rows >> 31 == 0 ? static_cast<unsigned>(row) / static_cast<unsigned>(length) : row / length;
  T* const to = data + b * out_b + (row - b * length) * out_l + n * out_n;
  const bool together =
      out_n == 1 && reinterpret_cast<uintptr_t>(data) % (4 * sizeof(T)) == 0 && (out_b | out_l | out_g) % 4 == 0;
  for (int64_t g = blockIdx.y; g < groups; g += gridDim.y) {
    const float* const from = sums.dBC + g * sums.group_blocks * sums.rows * 2 * N + 4 * i;
    float sum[4] = {};
    const auto add = [&](float4 v) { sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w; };
    if (row < sums.rows)
#pragma unroll 4
      for (int64_t k = y; k < sums.group_blocks; k += blockDim.y)
        add(*reinterpret_cast<const float4*>(from + k * sums.rows * 2 * N));
    __syncthreads();  // the group before has been added
    shared[y][x] = {sum[0], sum[1], sum[2], sum[3]};
    __syncthreads();
    if (y > 0 || row >= sums.rows) continue;
    for (int k = 1; k < static_cast<int>(blockDim.y); ++k) add(shared[k][x]);
    if (together)
      store_values(to + g * out_g, sum);
    else
      for (int c = 0; c < 4; ++c) to[g * out_g + c * out_n] = narrow<T>(sum[c]);
  }
}

struct StoreChannelSums {
  float *dA, *dD, *dbias;  // may be null but dA
  int64_t states, channels;

  __device__ void operator()(int64_t i, double sum) const {
    const auto value = static_cast<float>(sum);
    if (i < states)
      dA[i] = value;
    else if (i < states + channels) {
      if (dD != nullptr) dD[i - states] = value;
    } else if (dbias != nullptr && i < states + 2 * channels) {
      dbias[i - states - channels] = value;
    }
  }
};

template <typename T>
void add_backward_sums(const SelectiveScanBackward<T>& p, const BackwardSums& sums, CudaStream stream) {
  constexpr const char* kWhat = "selective_scan, sums of the backward pass";
  const int64_t states = p.channels * p.state;
  if (p.channels > 0)
    sum_columns(sums.channel, sums.count, sums.channel_row,
                StoreChannelSums{p.dA, p.dD, p.ddelta_bias, states, p.channels}, kWhat, stream);
  if (sums.rows == 0 || p.groups == 0) return;
  const dim3 blocks(static_cast<unsigned>((sums.rows * 2 * p.state / 4 + 31) / 32),
                    static_cast<unsigned>(std::min<int64_t>(p.groups, 65535)));
  const dim3 threads(32, static_cast<unsigned>(std::clamp<int64_t>((sums.group_blocks + 1) / 2, 1, 8)));
  if (p.state == 8)
    sum_blocks<T, 8><<<blocks, threads, 0, stream>>>(sums, p.groups, p.layout.length, p.dB_step, p.dC_step);
  else
    sum_blocks<T, 16><<<blocks, threads, 0, stream>>>(sums, p.groups, p.layout.length, p.dB_step, p.dC_step);
  check_launch(kWhat);
}

}  // namespace adder::kernels::cuda
