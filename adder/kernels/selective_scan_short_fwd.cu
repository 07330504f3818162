#include "adder/kernels/selective_scan_short.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kResident = 7;  // blocks on a processor

template <typename T, int N, bool kPlain>
__global__ void __launch_bounds__(32 * kShortWarps, kResident)
    short_forward(const __grid_constant__ SelectiveScanForward<T> p) {
  constexpr int kStates = N / 4;
  const ShortLane<T, N, kPlain> lane(p);
  const int q = lane.q, length = static_cast<int>(p.layout.length);
  const bool odd = q & 1, high = q & 2;
  for (int64_t s = blockIdx.y; s < p.layout.sequences; s += gridDim.y) {
    const int64_t state = lane.state(p, s, 0);
    float h[2][kStates];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      lane.initial(p, s, c, h[c]);
      if (p.border_states != nullptr) store_floats_if(lane.real[c], &p.border_states[state + c * N], h[c]);
    }
    for (int j0 = 0; j0 < length; j0 += 4) {
      const bool counted = lane.counted(p.layout, s, j0 + q);
      const int64_t t = lane.time(p.layout, j0 + q);
      const unsigned live = kPlain ? 0 : __ballot_sync(kAllLanes, counted);
      float pre[2], u[2], z[2] = {}, delta[2], input[2], part[2][4] = {};
      lane.values(p.delta, s, t, counted, pre);
      lane.values(p.u, s, t, counted, u);
      if (p.z.data != nullptr) lane.values(p.z, s, t, counted, z);
      lane.step(p, pre, u, counted, delta, input);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (j0 + k >= length) break;
        float B[kStates], C[kStates];
        const bool counted_k = live >> k & 1;
        lane.matrix(p.B_step, s, lane.time(p.layout, j0 + k), counted_k, B);
        lane.matrix(p.C_step, s, lane.time(p.layout, j0 + k), counted_k, C);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float delta_k = of_step(delta[c], k), input_k = of_step(input[c], k);
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            h[c][n] = fmaf(exp2_fast(delta_k * lane.A[c][n]), h[c][n], input_k * B[n]);
            part[c][k] = n == 0 ? C[n] * h[c][n] : fmaf(C[n], h[c][n], part[c][k]);
          }
        }
      }
      float y[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        y[c] = fmaf(lane.skip[c], u[c], sum_and_deal(part[c], odd, high));
        if (p.z.data != nullptr) y[c] *= z[c] * sigmoid_fast(z[c]);
        if (!counted) y[c] = 0;
      }
      lane.store(p.y, s, t, j0 + q < length, y);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) stream_floats_if(lane.real[c], &p.final_state[state + c * N], h[c]);
  }
}

// One step: what the next sequences need is on its way while one is worked on.
template <typename T, int N, bool kPlain>
__global__ void __launch_bounds__(32 * kShortWarps, kResident)
    single_forward(const __grid_constant__ SelectiveScanForward<T> p) {
  constexpr int kStates = N / 4;
  using Ahead = StepAhead<T, N, kPlain>;
  const ShortLane<T, N, kPlain> lane(p);
  const auto advance = [&](int64_t s, const SingleStep<T, N, kPlain>& now) {
    const int64_t state = lane.state(p, s, 0);
    float delta[2], input[2], y[2];
    lane.step(p, now.pre, now.u, now.counted, delta, input);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float h[kStates];
      y[c] = 0;
      lane.initial(p, s, c, h);
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        h[n] = fmaf(exp2_fast(delta[c] * lane.A[c][n]), h[n], input[c] * now.B[n]);
        y[c] = fmaf(now.C[n], h[n], y[c]);
      }
      stream_floats_if(lane.real[c], &p.final_state[state + c * N], h);
      y[c] += __shfl_xor_sync(kAllLanes, y[c], 1);  // in the order of sum_and_deal(): the same bits as in longer scans
      y[c] += __shfl_xor_sync(kAllLanes, y[c], 2);
      y[c] = fmaf(lane.skip[c], now.u[c], y[c]);
      if (p.z.data != nullptr) y[c] *= now.z[c] * sigmoid_fast(now.z[c]);
      if (!now.counted) y[c] = 0;
    }
    lane.store(p.y, s, 0, lane.q == 0, y);
  };
  Ahead ahead[Ahead::kAhead];
#pragma unroll
  for (int k = 0; k < Ahead::kAhead; ++k) ahead[k].load(lane, p, blockIdx.y + k * static_cast<int64_t>(gridDim.y));
  for (int64_t s = blockIdx.y; s < p.layout.sequences;)
#pragma unroll
    for (int k = 0; k < Ahead::kAhead; ++k, s += gridDim.y) {
      if (s >= p.layout.sequences) return;
      const SingleStep<T, N, kPlain> now = ahead[k].get();
      ahead[k].load(lane, p, s + Ahead::kAhead * static_cast<int64_t>(gridDim.y));
      advance(s, now);
    }
}

template <typename T, int N, bool kPlain>
auto forward_kernel(int64_t length) {
  return length == 1 ? single_forward<T, N, kPlain> : short_forward<T, N, kPlain>;
}

}  // namespace

template <typename T>
void selective_scan_forward_short(const SelectiveScanForward<T>& p, CudaStream stream) {
  constexpr int64_t kBlock = kShortWarps * kShortChannels;
  const int64_t blocks = (p.channels / p.groups + kBlock - 1) / kBlock * p.groups;
  if (blocks * p.layout.sequences == 0) return;
  const dim3 grid(static_cast<unsigned>(blocks),
                  static_cast<unsigned>(short_scan_walkers(p.layout, blocks, kResident)));
  const bool plain = is_short_plain(p, {p.y});
  const int64_t length = p.layout.length;
  const auto kernel = p.state == 8
                          ? (plain ? forward_kernel<T, 8, true>(length) : forward_kernel<T, 8, false>(length))
                          : (plain ? forward_kernel<T, 16, true>(length) : forward_kernel<T, 16, false>(length));
  kernel<<<grid, 32 * kShortWarps, 0, stream>>>(p);
  check_launch("selective_scan, forward of a few steps");
}

template void selective_scan_forward_short(const SelectiveScanForward<float>&, CudaStream);
template void selective_scan_forward_short(const SelectiveScanForward<bfloat16>&, CudaStream);
template void selective_scan_forward_short(const SelectiveScanForward<float16>&, CudaStream);

}  // namespace adder::kernels::cuda
