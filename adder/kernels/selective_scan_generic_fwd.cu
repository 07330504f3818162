#include "adder/kernels/selective_scan_cuda.h"
#include "adder/kernels/selective_scan_generic.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kPiece = 8;  // steps whose outputs a thread gathers before lanes add them; divides kCudaScanChunk

template <typename T, bool kComplex>
__global__ void __launch_bounds__(128) generic_forward(const SelectiveScanForward<T> p, int width) {
  using Reader = ScanReader<T, kComplex>;
  using R = typename Reader::R;
  using Num = typename Reader::Num;
  const Reader in{p};
  const int lane = static_cast<int>(threadIdx.x) % 32, n0 = lane % width;
  const int64_t per_warp = 32 / width, pieces = (p.channels + per_warp - 1) / per_warp;
  const int64_t warp = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  for (int64_t task = warp; task < p.layout.sequences * pieces; task += warps) {
    const int64_t s = task / pieces, wanted = task % pieces * per_warp + lane / width;
    const bool active = wanted < p.channels;
    const int64_t d = active ? wanted : p.channels - 1, g = d / (p.channels / p.groups);
    const SequenceRows rows(p.layout, s);
    const int64_t state = (s * p.channels + d) * p.state;  // lies in final_state until the end
    if (active)
      for (int64_t n = n0; n < p.state; n += width)
        Reader::set(p.final_state, state + n,
                    p.initial_state != nullptr ? Reader::number(p.initial_state, state + n) : NumberOf<Num>::of(0));
    const R skip = in.skip(d);
    for (int64_t j0 = 0; j0 < rows.length; j0 += kPiece) {
      R dt[kPiece], x[kPiece], y[kPiece];
      bool live[kPiece];
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        const int64_t t = rows.time(j0 + i);
        live[i] = j0 + i < rows.length && counts(p.layout.mask, rows.b, t);
        dt[i] = live[i] ? in.delta(rows.b, t, d) : R(0);
        x[i] = live[i] ? Reader::at(p.u, rows.b, t, d) : R(0);
        y[i] = 0;
      }
      const bool border = p.border_states != nullptr && j0 % kCudaScanChunk == 0;
      for (int64_t n = n0; active && n < p.state; n += width) {
        Num h = Reader::number(p.final_state, state + n);
        if (border)
          Reader::set(p.border_states, ((rows.chunk + j0 / kCudaScanChunk) * p.channels + d) * p.state + n, h);
        const Num A = in.A(d, n);
#pragma unroll
        for (int i = 0; i < kPiece; ++i) {
          if (!live[i]) continue;
          const int64_t t = rows.time(j0 + i);
          Num a, phi, dphi;
          in.discretize(dt[i] * A, a, phi, dphi);
          h = multiply_add(a, h, (dt[i] * x[i]) * (phi * in.B(rows.b, t, g, d, n)));
          y[i] = add_real_product(in.C(rows.b, t, g, d, n), h, y[i]);
        }
        Reader::set(p.final_state, state + n, h);
      }
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        R sum = sum_lanes(y[i], width);
        if (!active || n0 != i % width || j0 + i >= rows.length) continue;
        const int64_t t = rows.time(j0 + i);
        if constexpr (kComplex) sum *= 2;
        sum = fma(skip, x[i], sum);
        if (live[i] && p.z.data != nullptr) {
          const R z = Reader::at(p.z, rows.b, t, d);
          sum *= z * sigmoid(z);
        }
        p.y.data[rows.b * p.y.b + t * p.y.l + d * p.y.d] = narrow<T>(live[i] ? sum : R(0));
      }
    }
  }
}

}  // namespace

template <typename T>
void selective_scan_forward_generic(const SelectiveScanForward<T>& p, CudaStream stream) {
  const int width = scan_lanes(p.state);
  const int64_t tasks = p.layout.sequences * ((p.channels + 32 / width - 1) / (32 / width));
  if (tasks == 0) return;
  const unsigned blocks = grid_for(tasks, 4);
  if (p.complex)
    generic_forward<T, true><<<blocks, 128, 0, stream>>>(p, width);
  else
    generic_forward<T, false><<<blocks, 128, 0, stream>>>(p, width);
  check_launch("selective_scan, generic forward");
}

template void selective_scan_forward_generic(const SelectiveScanForward<float>&, CudaStream);
template void selective_scan_forward_generic(const SelectiveScanForward<double>&, CudaStream);
template void selective_scan_forward_generic(const SelectiveScanForward<bfloat16>&, CudaStream);
template void selective_scan_forward_generic(const SelectiveScanForward<float16>&, CudaStream);

}  // namespace adder::kernels::cuda
