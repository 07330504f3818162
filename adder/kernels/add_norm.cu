#include "adder/kernels/add_norm_cuda.h"
#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kKept = 32;  // values of a row that a thread keeps in registers; wider rows are read again

template <typename T, int kVector>
__device__ __forceinline__ void read(const T* from, Accumulator<T> (&to)[kVector]) {
  const auto v = *reinterpret_cast<const Vector<T, kVector>*>(from);
#pragma unroll
  for (int i = 0; i < kVector; ++i) to[i] = widen(v.value[i]);
}
template <typename T, int kVector>
__device__ __forceinline__ void write(T* to, const Accumulator<T> (&from)[kVector]) {
  Vector<T, kVector> v;
#pragma unroll
  for (int i = 0; i < kVector; ++i) v.value[i] = narrow<T>(from[i]);
  *reinterpret_cast<Vector<T, kVector>*>(to) = v;
}

// The sum over the block; all threads have it. `shared` holds 4 warps' parts of kCount sums.
template <typename R, int kCount>
__device__ __forceinline__ void sum_block(R (&x)[kCount], R* shared) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = sum_lanes(x[i], 32);
  __syncthreads();  // the sums before have been read
  if (threadIdx.x % 32 == 0)
#pragma unroll
    for (int i = 0; i < kCount; ++i) shared[i * (kThreads / 32) + threadIdx.x / 32] = x[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    x[i] = 0;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) x[i] += shared[i * (kThreads / 32) + w];
  }
}

template <typename T, typename Out, int kVector>
__global__ void __launch_bounds__(kThreads) forward(const AddNormForward<T, Out> p) {
  using R = Accumulator<T>;
  constexpr int kPieces = kKept / kVector;
  __shared__ R shared[2 * kThreads / 32];
  const int64_t step = kThreads * kVector, first = threadIdx.x * kVector;
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const T* x = p.x + row * p.width;
    const R* residual = p.residual != nullptr ? p.residual + row * p.width : nullptr;
    R* out = p.residual_out + row * p.width;
    R kept[kPieces][kVector], sum[1] = {0};
    const auto sum_of = [&](int64_t i, const R(&r)[kVector]) {
      (void)i;
#pragma unroll
      for (int k = 0; k < kVector; ++k) sum[0] += p.kind == NormKind::kRms ? r[k] * r[k] : r[k];
    };
    const auto load = [&](int64_t i, R(&r)[kVector]) {
      read<T, kVector>(x + i, r);
      if (residual != nullptr) {
        R more[kVector];
        read<R, kVector>(residual + i, more);
#pragma unroll
        for (int k = 0; k < kVector; ++k) r[k] += more[k];
      }
      write<R, kVector>(out + i, r);
      sum_of(i, r);
    };
#pragma unroll
    for (int n = 0; n < kPieces; ++n)
      if (first + n * step < p.width) load(first + n * step, kept[n]);
    for (int64_t i = first + kPieces * step; i < p.width; i += step) {
      R r[kVector];
      load(i, r);
    }
    // Each thread reads again only what it has written itself.
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int n = 0; n < kPieces; ++n)
        if (first + n * step < p.width) f(first + n * step, kept[n]);
      for (int64_t i = first + kPieces * step; i < p.width; i += step) {
        R r[kVector];
        read<R, kVector>(out + i, r);
        f(i, r);
      }
    };
    sum_block(sum, shared);
    R mean = 0, square = sum[0] / static_cast<R>(p.width);
    if (p.kind == NormKind::kLayer) {
      // The differences' own mean is what rounding has taken from the first one.
      mean = square;
      R sums[2] = {0, 0};
      each([&](int64_t, const R(&r)[kVector]) {
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
          sums[0] += r[k] - mean;
          sums[1] += (r[k] - mean) * (r[k] - mean);
        }
      });
      sum_block(sums, shared);
      const R rest = sums[0] / static_cast<R>(p.width);
      mean += rest;
      square = sums[1] / static_cast<R>(p.width) - rest * rest;
    }
    const R rstd = R(1) / sqrt(square + static_cast<R>(p.eps));
    each([&](int64_t i, const R(&r)[kVector]) {
      R weight[kVector], bias[kVector] = {};
      Accumulator<Out> y[kVector];
      read<R, kVector>(p.weight + i, weight);
      if (p.bias != nullptr) read<R, kVector>(p.bias + i, bias);
#pragma unroll
      for (int k = 0; k < kVector; ++k) y[k] = (r[k] - mean) * rstd * weight[k] + bias[k];
      write<Out, kVector>(p.y + row * p.width + i, y);
    });
    if (threadIdx.x == 0) {
      p.rstd[row] = rstd;
      if (p.kind == NormKind::kLayer) p.mean[row] = mean;
    }
  }
}

// A team of a warp, or of the whole block where rows are wide, takes rows in turn: the sums over rows that it keeps are
// its part of dweight and dbias.
template <typename T, typename Out, int kVector, int kTeam>
__global__ void __launch_bounds__(kThreads) backward(const AddNormBackward<T, Out> p) {
  using R = Accumulator<T>;
  constexpr int kPieces = (kTeam == 32 ? kKept : kKept / 2) / kVector, kTeams = kThreads / kTeam;
  __shared__ R shared[2 * kThreads / 32];
  const int64_t team = static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * kTeams;
  R* const parts = static_cast<R*>(p.workspace) + team * p.width;
  R* const bias_parts = p.dbias != nullptr ? parts + teams * p.width : nullptr;
  const int64_t step = kTeam * kVector, first = threadIdx.x % kTeam * kVector;
  R dweight[kPieces][kVector] = {}, dbias[kPieces][kVector] = {};
  const auto add_wide = [&](R* to, const R(&x)[kVector], bool start) {
    R sum[kVector] = {};
    if (!start) read<R, kVector>(to, sum);
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum[k] += x[k];
    write<R, kVector>(to, sum);
  };
  for (int64_t row = team; row < p.rows; row += teams) {
    const R rstd = p.rstd[row], mean = p.kind == NormKind::kLayer ? p.mean[row] : R(0);
    const int64_t at = row * p.width;
    R sums[2] = {0, 0};  // of dy w xhat and of dy w
    const auto load = [&](int64_t i, R(&xhat)[kVector], R(&dy)[kVector]) {
      Accumulator<Out> raw[kVector];
      R weight[kVector];
      read<Out, kVector>(p.dy + at + i, raw);
      read<R, kVector>(p.residual_out + at + i, xhat);
      read<R, kVector>(p.weight + i, weight);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        xhat[k] = (xhat[k] - mean) * rstd;
        dy[k] = raw[k] * weight[k];
      }
    };
    const auto sum = [&](int64_t i, R(&xhat)[kVector], R(&dy)[kVector]) {
      load(i, xhat, dy);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        sums[0] += dy[k] * xhat[k];
        sums[1] += dy[k];
      }
    };
    R xhat[kPieces][kVector], dy[kPieces][kVector];
#pragma unroll
    for (int n = 0; n < kPieces; ++n)
      if (first + n * step < p.width) sum(first + n * step, xhat[n], dy[n]);
    for (int64_t i = first + kPieces * step; i < p.width; i += step) {
      R x[kVector], g[kVector];
      sum(i, x, g);
    }
    if constexpr (kTeam == 32) {
      sums[0] = sum_lanes(sums[0], 32);
      sums[1] = sum_lanes(sums[1], 32);
    } else {
      sum_block(sums, shared);
    }
    const R slope = sums[0] / static_cast<R>(p.width);
    const R shift = p.kind == NormKind::kLayer ? sums[1] / static_cast<R>(p.width) : R(0);
    const auto finish = [&](int64_t i, const R(&x)[kVector], const R(&g)[kVector], R(&dw)[kVector], R(&db)[kVector]) {
      R dr[kVector] = {};
      Accumulator<Out> raw[kVector];
      read<Out, kVector>(p.dy + at + i, raw);
      if (p.dresidual_out != nullptr) read<R, kVector>(p.dresidual_out + at + i, dr);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        dr[k] += rstd * (g[k] - shift - x[k] * slope);
        dw[k] = raw[k] * x[k];
        db[k] = raw[k];
      }
      if (p.dresidual != nullptr) write<R, kVector>(p.dresidual + at + i, dr);
      if (p.dx != nullptr) {
        Accumulator<T> dx[kVector];
#pragma unroll
        for (int k = 0; k < kVector; ++k) dx[k] = dr[k];
        write<T, kVector>(p.dx + at + i, dx);
      }
    };
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      if (first + n * step >= p.width) continue;
      R dw[kVector], db[kVector];
      finish(first + n * step, xhat[n], dy[n], dw, db);
#pragma unroll
      for (int k = 0; k < kVector; ++k) dweight[n][k] += dw[k], dbias[n][k] += db[k];
    }
    for (int64_t i = first + kPieces * step; i < p.width; i += step) {
      R x[kVector], g[kVector], dw[kVector], db[kVector];
      load(i, x, g);
      finish(i, x, g, dw, db);
      add_wide(parts + i, dw, row == team);
      if (bias_parts != nullptr) add_wide(bias_parts + i, db, row == team);
    }
  }
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    if (first + n * step >= p.width) continue;
    write<R, kVector>(parts + first + n * step, dweight[n]);
    if (bias_parts != nullptr) write<R, kVector>(bias_parts + first + n * step, dbias[n]);
  }
}

// Teams of the backward pass, by the shape alone. A warp keeps a whole row of up to 32 values a lane.
bool warps_are_teams(int64_t width) {
  return width % 4 == 0 && width <= 32 * kKept;
}
int64_t row_teams(int64_t rows, int64_t width) {
  constexpr int64_t kWarpsOfBlock = kThreads / 32;
  if (!warps_are_teams(width)) return std::clamp<int64_t>(rows, 1, 1024);
  return std::clamp<int64_t>((rows + kWarpsOfBlock - 1) / kWarpsOfBlock, 1, 528) * kWarpsOfBlock;
}

template <typename... Pointers>
bool vectors_fit(int64_t width, const Pointers*... pointers) {
  return width % 4 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (4 * sizeof(Pointers)) == 0) && ...);
}

}  // namespace

template <typename T, typename Out>
void add_norm_forward(const AddNormForward<T, Out>& p, CudaStream stream) {
  if (p.rows == 0) return;
  const unsigned blocks = grid_for(p.rows, 1);
  if (vectors_fit(p.width, p.x, p.residual, p.weight, p.bias, p.y, p.residual_out))
    forward<T, Out, 4><<<blocks, kThreads, 0, stream>>>(p);
  else
    forward<T, Out, 1><<<blocks, kThreads, 0, stream>>>(p);
  check_launch("add_norm, forward");
}

template <typename T, typename Out>
int64_t add_norm_backward_workspace_bytes(const AddNormBackward<T, Out>& p) {
  return row_teams(p.rows, p.width) * p.width * (p.dbias != nullptr ? 2 : 1) *
         static_cast<int64_t>(sizeof(Accumulator<T>));
}

template <typename T, typename Out>
void add_norm_backward(const AddNormBackward<T, Out>& p, CudaStream stream) {
  using R = Accumulator<T>;
  if (p.rows == 0) {
    const size_t bytes = static_cast<size_t>(p.width) * sizeof(R);
    check(cudaMemsetAsync(p.dweight, 0, bytes, stream), "add_norm, backward");
    if (p.dbias != nullptr) check(cudaMemsetAsync(p.dbias, 0, bytes, stream), "add_norm, backward");
    return;
  }
  const int64_t teams = row_teams(p.rows, p.width);
  const auto blocks = static_cast<unsigned>(warps_are_teams(p.width) ? teams / (kThreads / 32) : teams);
  const R* parts = static_cast<const R*>(p.workspace);
  const bool vectors = vectors_fit(p.width, p.dy, p.dresidual_out, p.residual_out, p.weight, p.dx, p.dresidual, parts);
  if (warps_are_teams(p.width))
    vectors ? backward<T, Out, 4, 32><<<blocks, kThreads, 0, stream>>>(p)
            : backward<T, Out, 1, 32><<<blocks, kThreads, 0, stream>>>(p);
  else
    vectors ? backward<T, Out, 4, kThreads><<<blocks, kThreads, 0, stream>>>(p)
            : backward<T, Out, 1, kThreads><<<blocks, kThreads, 0, stream>>>(p);
  check_launch("add_norm, backward");
  sum_columns(parts, teams, p.width, StoreSum<R>{p.dweight}, "add_norm, sums of the backward pass", stream);
  if (p.dbias != nullptr)
    sum_columns(parts + teams * p.width, teams, p.width, StoreSum<R>{p.dbias}, "add_norm, sums of the backward pass",
                stream);
}

#define ADDER_INSTANTIATE(T, Out)                                              \
  template void add_norm_forward(const AddNormForward<T, Out>&, CudaStream);   \
  template void add_norm_backward(const AddNormBackward<T, Out>&, CudaStream); \
  template int64_t add_norm_backward_workspace_bytes(const AddNormBackward<T, Out>&);
ADDER_INSTANTIATE(float, float)
ADDER_INSTANTIATE(float, bfloat16)
ADDER_INSTANTIATE(float, float16)
ADDER_INSTANTIATE(bfloat16, float)
ADDER_INSTANTIATE(bfloat16, bfloat16)
ADDER_INSTANTIATE(bfloat16, float16)
ADDER_INSTANTIATE(float16, float)
ADDER_INSTANTIATE(float16, bfloat16)
ADDER_INSTANTIATE(float16, float16)
ADDER_INSTANTIATE(double, double)

}  // namespace adder::kernels::cuda
