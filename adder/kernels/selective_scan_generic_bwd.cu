#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/scratch.h"
#include "adder/kernels/selective_scan_cuda.h"
#include "adder/kernels/selective_scan_generic.cuh"

namespace adder::kernels::cuda {
namespace {

// How the work is divided, by the shape alone. A block of channels is one warp's: it adds their parts of dB and dC in
// order, and a second kernel adds the blocks.
struct BackwardPlan {
  int64_t group_channels, block_channels, group_blocks, blocks, numbers, rows;

  template <typename T>
  explicit BackwardPlan(const SelectiveScanInputs<T>& p) {
    const int64_t warp_channels = 32 / scan_lanes(p.state);
    group_channels = p.channels / p.groups;
    const int64_t wanted = p.channels * p.layout.sequences / 1024;  // 1024 warps fill a large device
    block_channels = std::clamp<int64_t>(wanted, warp_channels, 64) / warp_channels * warp_channels;
    group_blocks = (group_channels + block_channels - 1) / block_channels;
    blocks = p.groups * group_blocks;
    numbers = p.state * (p.complex ? 2 : 1);
    rows = p.layout.batch * p.layout.length;
  }
};

// Sums that a thread adds to in memory, in double: their number of terms is that of all steps.
template <typename R>
struct BackwardWorkspace {
  R* dstate;                         // (S, D, N): the gradient of the state after the steps to come
  R *dB_part, *dC_part;              // (blocks, B L, N), null where constant
  double *dA, *dB_const, *dC_const;  // (S, D, N)
  double *dD, *ddelta_bias;          // (S, D)
  size_t bytes, zeroed_from;

  template <typename T>
  BackwardWorkspace(const SelectiveScanInputs<T>& p, void* base) {
    const BackwardPlan plan(p);
    const int64_t rows = p.layout.sequences * p.channels, states = rows * plan.numbers;
    Carver<R> carver(static_cast<std::byte*>(base));
    dstate = carver.take(states);
    Carver<R> parts(at(base, carver.used()));
    const int64_t part = plan.blocks * plan.rows * plan.numbers;
    dB_part = p.constant_B ? nullptr : parts.take(part);
    dC_part = p.constant_C ? nullptr : parts.take(part);
    Carver<double> sums(at(base, carver.used() + parts.used()));
    dA = sums.take(states);
    dB_const = p.constant_B ? sums.take(states) : nullptr;
    dC_const = p.constant_C ? sums.take(states) : nullptr;
    dD = sums.take(rows);
    ddelta_bias = sums.take(rows);
    zeroed_from = carver.used();
    bytes = carver.used() + parts.used() + sums.used();
  }

 private:
  static std::byte* at(void* base, size_t offset) {
    return base != nullptr ? static_cast<std::byte*>(base) + offset : nullptr;
  }
};

template <typename Num>
__device__ __forceinline__ void add_to(double* sums, int64_t index, Num x) {
  if constexpr (std::is_floating_point_v<Num>) {
    sums[index] += x;
  } else {
    sums[2 * index] += x.re;
    sums[2 * index + 1] += x.im;
  }
}

template <typename T, bool kComplex>
__global__ void __launch_bounds__(128) generic_backward(const SelectiveScanBackward<T> p, const BackwardPlan plan,
                                                        const BackwardWorkspace<Accumulator<T>> w, int width) {
  using Reader = ScanReader<T, kComplex>;
  using R = typename Reader::R;
  using Num = typename Reader::Num;
  constexpr int kSteps = static_cast<int>(kCudaScanChunk);
  const Reader in{p};
  const R twice = kComplex ? 2 : 1;
  const int lane = static_cast<int>(threadIdx.x) % 32, n0 = lane % width;
  const int64_t per_warp = 32 / width;
  const int64_t warp = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) / 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * blockDim.x / 32;
  for (int64_t task = warp; task < p.layout.sequences * plan.blocks; task += warps) {
    const int64_t s = task / plan.blocks, block = task % plan.blocks, g = block / plan.group_blocks;
    const int64_t first = block % plan.group_blocks * plan.block_channels;
    const int64_t last = min(first + plan.block_channels, plan.group_channels);
    const SequenceRows rows(p.layout, s);
    for (int64_t c = first; c < last; c += per_warp) {
      const bool active = c + lane / width < last;
      const int64_t d = g * plan.group_channels + (active ? c + lane / width : last - 1);
      const int64_t row = s * p.channels + d, state = row * p.state;
      const R skip = in.skip(d);
      if (active)
        for (int64_t n = n0; n < p.state; n += width)
          Reader::set(w.dstate, state + n,
                      p.dfinal_state != nullptr ? Reader::number(p.dfinal_state, state + n) : NumberOf<Num>::of(0));
      double dskip = 0, dbias = 0;
      for (int64_t chunk = (rows.length + kSteps - 1) / kSteps - 1; chunk >= 0; --chunk) {
        const int64_t j0 = chunk * kSteps;
        const int steps = static_cast<int>(min(rows.length - j0, static_cast<int64_t>(kSteps)));
        R dt[kSteps], x[kSteps], dy[kSteps], y[kSteps], ddelta[kSteps], du[kSteps];
        unsigned live = 0;
        for (int i = 0; i < steps; ++i) {
          const int64_t t = rows.time(j0 + i);
          dt[i] = x[i] = dy[i] = y[i] = ddelta[i] = du[i] = 0;
          if (!counts(p.layout.mask, rows.b, t)) continue;
          live |= 1u << i;
          dt[i] = in.delta(rows.b, t, d);
          x[i] = Reader::at(p.u, rows.b, t, d);
          dy[i] = Reader::at(p.dy, rows.b, t, d);
          if (p.z.data != nullptr) {
            const R z = Reader::at(p.z, rows.b, t, d);
            dy[i] *= z * sigmoid(z);
          }
        }
        // All lanes stay together here: they add dB and dC of their channels.
        for (int64_t n_base = 0; n_base < p.state; n_base += width) {
          const int64_t n = n_base + n0;
          const bool mine = active && n < p.state;
          const Num zero = NumberOf<Num>::of(0), A = mine ? in.A(d, n) : zero;
          Num h[kSteps + 1], dA = zero, dB_sum = zero, dC_sum = zero;
          h[0] = mine ? Reader::number(p.border_states, ((rows.chunk + chunk) * p.channels + d) * p.state + n) : zero;
          for (int i = 0; i < steps; ++i) {
            h[i + 1] = h[i];
            if (!mine || (live >> i & 1) == 0) continue;
            const int64_t t = rows.time(j0 + i);
            Num a, phi, dphi;
            in.discretize(dt[i] * A, a, phi, dphi);
            h[i + 1] = multiply_add(a, h[i], (dt[i] * x[i]) * (phi * in.B(rows.b, t, g, d, n)));
          }
          Num dh = mine ? Reader::number(w.dstate, state + n) : zero;
          for (int i = steps - 1; i >= 0; --i) {
            if ((live >> i & 1) == 0) continue;
            const int64_t t = rows.time(j0 + i);
            Num dB = zero, dC = zero;
            if (mine) {
              const Num B = in.B(rows.b, t, g, d, n), C = in.C(rows.b, t, g, d, n);
              Num a, phi, dphi;
              in.discretize(dt[i] * A, a, phi, dphi);
              y[i] += twice * real_part(C * h[i + 1]);
              dh = dh + (twice * dy[i]) * conjugate(C);
              dC = (twice * dy[i]) * conjugate(h[i + 1]);
              const Num dx = dh * conjugate(a * h[i]) + dh * conjugate((dt[i] * x[i]) * (B * dphi));
              dB = dh * conjugate((dt[i] * x[i]) * phi);
              const R input = real_part(dh * conjugate(phi * B));
              ddelta[i] += real_part(dx * conjugate(A)) + x[i] * input;
              du[i] += dt[i] * input;
              dA = dA + dt[i] * dx;
              dh = dh * conjugate(a);
            }
            const int64_t part = (block * plan.rows + rows.b * p.layout.length + t) * p.state + n;
            const auto add_channels = [&](R* parts, Num& sum, Num value) {
              if (parts == nullptr) {
                sum = sum + value;
                return;
              }
              value = sum_across_number(value, width);
              if (lane < width && n < p.state) Reader::set(parts, part, Reader::number(parts, part) + value);
            };
            add_channels(w.dB_part, dB_sum, dB);
            add_channels(w.dC_part, dC_sum, dC);
          }
          if (!mine) continue;
          Reader::set(w.dstate, state + n, dh);
          add_to(w.dA, state + n, dA);
          if (w.dB_const != nullptr) add_to(w.dB_const, state + n, dB_sum);
          if (w.dC_const != nullptr) add_to(w.dC_const, state + n, dC_sum);
        }
        for (int i = 0; i < steps; ++i) {
          R out = sum_lanes(y[i], width), dd = sum_lanes(ddelta[i], width), dx = sum_lanes(du[i], width);
          const int64_t t = rows.time(j0 + i);
          R dz = 0;
          if ((live >> i & 1) != 0) {
            if (p.delta_softplus) dd *= sigmoid(in.pre_delta(rows.b, t, d));
            dx += skip * dy[i];
            dskip += dy[i] * x[i];
            dbias += dd;
            if (p.dz.data != nullptr) {
              const R z = Reader::at(p.z, rows.b, t, d), sigma = sigmoid(z);
              dz = Reader::at(p.dy, rows.b, t, d) * (out + skip * x[i]) * sigma * (R(1) + z * (R(1) - sigma));
            }
          }
          if (!active || n0 != i % width) continue;
          p.du.data[rows.b * p.du.b + t * p.du.l + d * p.du.d] = narrow<T>(dx);
          p.ddelta.data[rows.b * p.ddelta.b + t * p.ddelta.l + d * p.ddelta.d] = narrow<T>(dd);
          if (p.dz.data != nullptr) p.dz.data[rows.b * p.dz.b + t * p.dz.l + d * p.dz.d] = narrow<T>(dz);
        }
      }
      if (!active) continue;
      if (p.dinitial_state != nullptr)
        for (int64_t n = n0; n < p.state; n += width)
          Reader::set(p.dinitial_state, state + n, Reader::number(w.dstate, state + n));
      if (n0 == 0) {
        w.dD[row] = dskip;
        w.ddelta_bias[row] = dbias;
      }
    }
  }
}

// dB (B, L, G, N) from its parts (G, blocks, B L, N).
template <typename T>
__global__ void sum_blocks(const Accumulator<T>* parts, BackwardPlan plan, int64_t groups, int64_t length,
                           View4<T> out) {
  using R = Accumulator<T>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x, size = plan.rows * groups * plan.numbers;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < size; i += stride) {
    const int64_t n = i % plan.numbers, g = i / plan.numbers % groups, row = i / plan.numbers / groups;
    R sum = 0;
    for (int64_t k = 0; k < plan.group_blocks; ++k)
      sum += parts[((g * plan.group_blocks + k) * plan.rows + row) * plan.numbers + n];
    out.data[row / length * out.b + row % length * out.l + g * out.g + n * out.n] = narrow<T>(sum);
  }
}

}  // namespace

template <typename T>
int64_t selective_scan_backward_generic_workspace_bytes(const SelectiveScanInputs<T>& inputs) {
  return static_cast<int64_t>(BackwardWorkspace<Accumulator<T>>(inputs, nullptr).bytes);
}

template <typename T>
void selective_scan_backward_generic(const SelectiveScanBackward<T>& p, CudaStream stream) {
  using R = Accumulator<T>;
  const BackwardPlan plan(p);
  const BackwardWorkspace<R> w(p, p.workspace);
  check(cudaMemsetAsync(static_cast<std::byte*>(p.workspace) + w.zeroed_from, 0, w.bytes - w.zeroed_from, stream),
        "selective_scan, backward");
  const int width = scan_lanes(p.state);
  const int64_t tasks = p.layout.sequences * plan.blocks;
  if (tasks > 0) {
    const unsigned blocks = grid_for(tasks, 4);
    if (p.complex)
      generic_backward<T, true><<<blocks, 128, 0, stream>>>(p, plan, w, width);
    else
      generic_backward<T, false><<<blocks, 128, 0, stream>>>(p, plan, w, width);
    check_launch("selective_scan, generic backward");
  }
  const auto reduce = [&](const double* parts, int64_t size, R* out) {
    if (out != nullptr)
      sum_columns(parts, p.layout.sequences, size, StoreSum<R>{out}, "selective_scan, sums of the backward pass",
                  stream);
  };
  const int64_t states = p.channels * plan.numbers;
  reduce(w.dA, states, p.dA);
  if (p.constant_B) reduce(w.dB_const, states, p.dB_const);
  if (p.constant_C) reduce(w.dC_const, states, p.dC_const);
  reduce(w.dD, p.channels, p.dD);
  reduce(w.ddelta_bias, p.channels, p.ddelta_bias);
  const auto reduce_steps = [&](const R* parts, const View4<T>& out) {
    const int64_t size = plan.rows * p.groups * plan.numbers;
    if (size == 0) return;
    sum_blocks<T><<<grid_for(size, 256), 256, 0, stream>>>(parts, plan, p.groups, p.layout.length, out);
    check_launch("selective_scan, sums of the backward pass");
  };
  if (!p.constant_B) reduce_steps(w.dB_part, p.dB_step);
  if (!p.constant_C) reduce_steps(w.dC_part, p.dC_step);
}

#define ADDER_INSTANTIATE(T)                                                                       \
  template int64_t selective_scan_backward_generic_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_backward_generic(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(double)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
