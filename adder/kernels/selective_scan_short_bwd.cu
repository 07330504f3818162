#include "adder/kernels/selective_scan_short.cuh"
#include "adder/kernels/selective_scan_sums.cuh"

namespace adder::kernels::cuda {
namespace {

// The sum over the lanes with this quarter of the states; where `mine` is true, the lane has the one of state `at`.
template <int kStates>
struct SumOverChannels {
  static_assert(kStates == 2 || kStates == 4);
  int at;
  bool mine;
  __device__ explicit SumOverChannels(int lane) {
    at = kStates == 4 ? (lane >> 4 & 1) * 2 + (lane >> 3 & 1) : lane >> 4 & 1;
    mine = kStates == 4 ? (lane & 4) == 0 : (lane & 12) == 0;
  }
  __device__ float operator()(const float (&v)[kStates], int lane) const {
    const bool upper = lane & 16;
    float sum;
    if constexpr (kStates == 4) {
      const float a = (upper ? v[2] : v[0]) + __shfl_xor_sync(kAllLanes, upper ? v[0] : v[2], 16);
      const float b = (upper ? v[3] : v[1]) + __shfl_xor_sync(kAllLanes, upper ? v[1] : v[3], 16);
      const bool second = lane & 8;
      sum = (second ? b : a) + __shfl_xor_sync(kAllLanes, second ? a : b, 8);
    } else {
      sum = (upper ? v[1] : v[0]) + __shfl_xor_sync(kAllLanes, upper ? v[0] : v[1], 16);
      sum += __shfl_xor_sync(kAllLanes, sum, 8);
    }
    return sum + __shfl_xor_sync(kAllLanes, sum, 4);
  }
};

// The sums over a lane's walk, where add_backward_sums() finds them.
template <typename T, int N, bool kPlain>
__device__ __forceinline__ void store_sums(const SelectiveScanBackward<T>& p, const BackwardSums& out,
                                           const ShortLane<T, N, kPlain>& lane, const float (&dA)[2][N / 4],
                                           const float (&dskip)[2], const float (&dbias)[2]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    store_floats_if(lane.real[c], out.A_sum(blockIdx.y, N, lane.d + c) + lane.q * (N / 4), dA[c]);
    const float of_skip = sum_lanes(dskip[c], 4), of_bias = sum_lanes(dbias[c], 4);
    if (lane.q == 0 && lane.real[c]) {
      float* const to = out.skip_sum(blockIdx.y, p.channels, N, lane.d + c);
      to[0] = of_skip;
      to[p.channels] = of_bias;
    }
  }
}

// dB and dC of the block's channels: the warps' parts of `length` steps.
template <typename T, int N, bool kPlain>
__device__ __forceinline__ void store_block_sums(const SelectiveScanBackward<T>& p, const BackwardSums& out,
                                                 const ShortLane<T, N, kPlain>& lane, int64_t s, int length,
                                                 const float* sums, int of_warp) {
  __syncthreads();  // all warps' parts are there; the other buffer is free after the next of these
  for (int i = static_cast<int>(threadIdx.x); i < length * 2 * N; i += 32 * kShortWarps) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kShortWarps; ++w) sum += sums[w * of_warp + i];
    const int64_t row = (lane.block * p.layout.batch + s) * length + lane.time(p.layout, i / (2 * N));
    out.dBC[row * 2 * N + i % (2 * N)] = sum;
  }
}

// Blocks on a processor.
constexpr int resident_blocks(int64_t steps) {
  return steps == 1 ? 4 : steps <= 4 ? 3 : 2;
}

// One step: what the next sequence needs is on its way while one is worked on.
template <typename T, int N, bool kPlain>
__global__ void __launch_bounds__(32 * kShortWarps, resident_blocks(1))
    single_backward(const __grid_constant__ SelectiveScanBackward<T> p, const BackwardSums out) {
  constexpr int kStates = N / 4;
  __shared__ float sums[2][kShortWarps][2][N];
  const ShortLane<T, N, kPlain> lane(p);
  const int q = lane.q, thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const SumOverChannels<kStates> sum_over_channels(thread % 32);
  float dA[2][kStates] = {}, dskip[2] = {}, dbias[2] = {};
  struct Step : SingleStep<T, N, kPlain> {
    float dy[2], h[2][kStates];
  } now, next;
  const auto load = [&](int64_t s) {
    if (s >= p.layout.sequences) return;
    next.load(lane, p, s);
    lane.values(p.dy, s, 0, next.counted, next.dy);
#pragma unroll
    for (int c = 0; c < 2; ++c) lane.initial(p, s, c, next.h[c]);
  };
  load(blockIdx.y);
  int buffer = 0;
  for (int64_t s = blockIdx.y; s < p.layout.sequences; s += gridDim.y, buffer ^= 1) {
    now = next;
    load(s + gridDim.y);
    const int64_t state = lane.state(p, s, 0);
    float delta[2], input[2], du[2], ddelta[2], dz[2], dB[kStates], dC[kStates];
    lane.step(p, now.pre, now.u, now.counted, delta, input);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float gated = p.z.data != nullptr ? now.dy[c] * now.z[c] * sigmoid_fast(now.z[c]) : now.dy[c];
      float y = 0, by_A = 0, by_B = 0, dinitial[kStates];
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        const float a = exp2_fast(delta[c] * lane.A[c][n]), m = a * now.h[c][n], h = fmaf(input[c], now.B[n], m);
        float dh = lane.real[c] && p.dfinal_state != nullptr ? p.dfinal_state[state + c * N + n] : 0.0f;
        dh = fmaf(gated, now.C[n], dh);
        const float w = dh * m;
        y = fmaf(now.C[n], h, y);
        by_A = fmaf(w, lane.A[c][n], by_A);
        by_B = fmaf(now.B[n], dh, by_B);
        dA[c][n] = fmaf(w, delta[c], dA[c][n]);
        dB[n] = c == 0 ? input[c] * dh : fmaf(input[c], dh, dB[n]);
        dC[n] = c == 0 ? gated * h : fmaf(gated, h, dC[n]);
        dinitial[n] = dh * a;
      }
      if (p.dinitial_state != nullptr) store_floats_if(lane.real[c], &p.dinitial_state[state + c * N], dinitial);
      step_gradients(sum_lanes(by_A, 4), sum_lanes(by_B, 4), now.u[c], delta[c], now.pre[c] + lane.bias[c], gated,
                     lane.skip[c], p.delta_softplus, du[c], ddelta[c]);
      dz[c] = gate_gradient(now.dy[c], sum_lanes(y, 4), now.u[c], now.z[c], lane.skip[c]);
      if (!now.counted) du[c] = ddelta[c] = dz[c] = 0;
      // Each lane of a channel has the whole: one of them adds it.
      dskip[c] = q == 0 ? fmaf(gated, now.u[c], dskip[c]) : 0.0f;
      dbias[c] += q == 0 ? ddelta[c] : 0.0f;
    }
    lane.store(p.du, s, 0, q == 0, du);
    lane.store(p.ddelta, s, 0, q == 0, ddelta);
    if (p.dz.data != nullptr) lane.store(p.dz, s, 0, q == 0, dz);
    const float of_B = sum_over_channels(dB, thread % 32), of_C = sum_over_channels(dC, thread % 32);
    if (sum_over_channels.mine) {
      sums[buffer][warp][0][q * kStates + sum_over_channels.at] = of_B;
      sums[buffer][warp][1][q * kStates + sum_over_channels.at] = of_C;
    }
    store_block_sums(p, out, lane, s, 1, &sums[buffer][0][0][0], 2 * N);
  }
  store_sums(p, out, lane, dA, dskip, dbias);
}

// Up to kSteps steps.
template <typename T, int N, int kSteps, bool kPlain>
__global__ void __launch_bounds__(32 * kShortWarps, resident_blocks(kSteps))
    short_backward(const __grid_constant__ SelectiveScanBackward<T> p, const BackwardSums out) {
  constexpr int kStates = N / 4, kFours = kSteps / 4;
  __shared__ float sums[2][kShortWarps][kSteps][2][N];  // dB and dC of the warps' channels
  const ShortLane<T, N, kPlain> lane(p);
  const int q = lane.q, thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const int length = static_cast<int>(p.layout.length);
  const bool odd = q & 1, high = q & 2;
  const SumOverChannels<kStates> sum_over_channels(thread % 32);
  float dA[2][kStates] = {}, dskip[2] = {}, dbias[2] = {};
  int buffer = 0;
  for (int64_t s = blockIdx.y; s < p.layout.sequences; s += gridDim.y, buffer ^= 1) {
    const int64_t state = lane.state(p, s, 0);
    float h[2][kStates], dh[2][kStates];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      lane.initial(p, s, c, h[c]);
#pragma unroll
      for (int n = 0; n < kStates; ++n)
        dh[c][n] = lane.real[c] && p.dfinal_state != nullptr ? p.dfinal_state[state + c * N + n] : 0.0f;
    }
    float pre[kFours][2], u[kFours][2], z[kFours][2] = {}, dy[kFours][2], gated[kFours][2], delta[kFours][2],
                                        input[kFours][2], y[kFours][2];
    float a[kSteps][2][kStates], m[kSteps][2][kStates];
    unsigned live[kFours] = {};
    const auto sum_to = [&](int j, int which) {
      return &sums[buffer][warp][j][which][q * kStates + sum_over_channels.at];
    };
    // Step k of four i, of which lane q = k has delta, delta u and the gated dy.
    struct Step {
      float B[kStates], C[kStates], delta[2], input[2], dy[2];
    };
    const auto step_at = [&](int i, int k) {
      Step step;
      const int64_t t = lane.time(p.layout, 4 * i + k);
      lane.matrix(p.B_step, s, t, live[i] >> k & 1, step.B);
      lane.matrix(p.C_step, s, t, live[i] >> k & 1, step.C);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        step.delta[c] = of_step(delta[i][c], k);
        step.input[c] = of_step(input[i][c], k);
        step.dy[c] = of_step(gated[i][c], k);
      }
      return step;
    };
#pragma unroll
    for (int i = 0; i < kFours; ++i) {
      const bool counted = lane.counted(p.layout, s, 4 * i + q);
      const int64_t t = lane.time(p.layout, 4 * i + q);
      live[i] = __ballot_sync(kAllLanes, counted);
      lane.values(p.delta, s, t, counted, pre[i]);
      lane.values(p.u, s, t, counted, u[i]);
      lane.values(p.dy, s, t, counted, dy[i]);
      if (p.z.data != nullptr) lane.values(p.z, s, t, counted, z[i]);
      lane.step(p, pre[i], u[i], counted, delta[i], input[i]);
      float part[2][4] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c)
        gated[i][c] = p.z.data != nullptr ? dy[i][c] * z[i][c] * sigmoid_fast(z[i][c]) : dy[i][c];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int j = 4 * i + k;
        if (j >= length) break;
        const Step step = step_at(i, k);
        float dC[kStates];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            a[j][c][n] = exp2_fast(step.delta[c] * lane.A[c][n]);
            m[j][c][n] = a[j][c][n] * h[c][n];
            h[c][n] = fmaf(step.input[c], step.B[n], m[j][c][n]);
            part[c][k] = n == 0 ? step.C[n] * h[c][n] : fmaf(step.C[n], h[c][n], part[c][k]);
            dC[n] = c == 0 ? step.dy[c] * h[c][n] : fmaf(step.dy[c], h[c][n], dC[n]);
          }
        }
        const float sum = sum_over_channels(dC, thread % 32);
        if (sum_over_channels.mine) *sum_to(j, 1) = sum;
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) y[i][c] = sum_and_deal(part[c], odd, high);
    }
#pragma unroll
    for (int i = kFours - 1; i >= 0; --i) {
      float by_A[2][4] = {}, by_B[2][4] = {};
#pragma unroll
      for (int k = 3; k >= 0; --k) {
        const int j = 4 * i + k;
        if (j >= length) continue;
        const Step step = step_at(i, k);
        float dB[kStates];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int n = 0; n < kStates; ++n) {
            dh[c][n] = fmaf(step.dy[c], step.C[n], dh[c][n]);
            const float w = dh[c][n] * m[j][c][n];
            by_A[c][k] = n == 0 ? w * lane.A[c][n] : fmaf(w, lane.A[c][n], by_A[c][k]);
            dA[c][n] = fmaf(w, step.delta[c], dA[c][n]);
            dB[n] = c == 0 ? step.input[c] * dh[c][n] : fmaf(step.input[c], dh[c][n], dB[n]);
            by_B[c][k] = n == 0 ? step.B[n] * dh[c][n] : fmaf(step.B[n], dh[c][n], by_B[c][k]);
            dh[c][n] *= a[j][c][n];
          }
        }
        const float sum = sum_over_channels(dB, thread % 32);
        if (sum_over_channels.mine) *sum_to(j, 0) = sum;
      }
      const int j = 4 * i + q;
      const int64_t t = lane.time(p.layout, j);
      const bool there = j < length, counted = live[i] >> q & 1;
      float du[2], ddelta[2], dz[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float sA = sum_and_deal(by_A[c], odd, high), sB = sum_and_deal(by_B[c], odd, high);
        step_gradients(sA, sB, u[i][c], delta[i][c], pre[i][c] + lane.bias[c], gated[i][c], lane.skip[c],
                       p.delta_softplus, du[c], ddelta[c]);
        dz[c] = gate_gradient(dy[i][c], y[i][c], u[i][c], z[i][c], lane.skip[c]);
        if (!counted) du[c] = ddelta[c] = dz[c] = 0;
        dskip[c] = fmaf(gated[i][c], u[i][c], dskip[c]);
        dbias[c] += ddelta[c];
      }
      lane.store(p.du, s, t, there, du);
      lane.store(p.ddelta, s, t, there, ddelta);
      if (p.dz.data != nullptr) lane.store(p.dz, s, t, there, dz);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c)
      if (p.dinitial_state != nullptr) store_floats_if(lane.real[c], &p.dinitial_state[state + c * N], dh[c]);
    store_block_sums(p, out, lane, s, length, &sums[buffer][0][0][0][0], kSteps * 2 * N);
  }
  store_sums(p, out, lane, dA, dskip, dbias);
}

struct Plan {
  int64_t walkers;
  BackwardSums sums;
  size_t bytes;

  template <typename T>
  Plan(const SelectiveScanInputs<T>& p, void* workspace) : Plan(p, Carver<float>(static_cast<std::byte*>(workspace))) {}

 private:
  static constexpr int64_t kBlock = kShortWarps * kShortChannels;
  template <typename T>
  Plan(const SelectiveScanInputs<T>& p, Carver<float> carver)
      : walkers(short_scan_walkers(p.layout, (p.channels / p.groups + kBlock - 1) / kBlock * p.groups,
                                   resident_blocks(p.layout.length))),
        sums(p, kBlock, walkers, carver),
        bytes(carver.used()) {}
};

template <typename T, int N, bool kPlain>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  const dim3 grid(static_cast<unsigned>(plan.sums.blocks), static_cast<unsigned>(plan.walkers));
  const auto kernel = p.layout.length == 1   ? single_backward<T, N, kPlain>
                      : p.layout.length <= 4 ? short_backward<T, N, 4, kPlain>
                                             : short_backward<T, N, 8, kPlain>;
  kernel<<<grid, 32 * kShortWarps, 0, stream>>>(p, plan.sums);
  check_launch("selective_scan, backward of a few steps");
}

template <typename T, int N>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  const View3<T> dy{const_cast<T*>(p.dy.data), p.dy.b, p.dy.l, p.dy.d};
  const bool plain = is_short_plain(p, {dy, p.du, p.ddelta, p.dz});
  plain ? launch<T, N, true>(p, plan, stream) : launch<T, N, false>(p, plan, stream);
}

}  // namespace

template <typename T>
int64_t selective_scan_backward_short_workspace_bytes(const SelectiveScanInputs<T>& p) {
  return static_cast<int64_t>(Plan(p, nullptr).bytes);
}

template <typename T>
void selective_scan_backward_short(const SelectiveScanBackward<T>& p, CudaStream stream) {
  const Plan plan(p, p.workspace);
  if (plan.sums.blocks > 0) p.state == 8 ? launch<T, 8>(p, plan, stream) : launch<T, 16>(p, plan, stream);
  add_backward_sums(p, plan.sums, stream);
}

#define ADDER_INSTANTIATE(T)                                                                     \
  template int64_t selective_scan_backward_short_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_backward_short(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
