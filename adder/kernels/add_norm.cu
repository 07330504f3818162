#include "adder/kernels/add_norm_cuda.h"
#include "adder/kernels/column_sums.cuh"
#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_vectors.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kThreads = 128;

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

// The sum over a team; all its threads have it. Where the team is the block, `shared` holds its warps' parts.
template <int kTeam, typename R, int kCount>
__device__ __forceinline__ void sum_team(R (&x)[kCount], R* shared) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = sum_lanes(x[i], kTeam < 32 ? kTeam : 32);
  if constexpr (kTeam > 32) {
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
}

// Rows are dealt to teams: half a warp, a warp, or the whole block. A thread keeps up to kKept values of a row in
// registers; wider rows are read again.
template <typename T, typename Out, int kVector, int kTeam, int kKept>
__global__ void __launch_bounds__(kThreads) forward(const AddNormForward<T, Out> p) {
  using R = Accumulator<T>;
  constexpr int kPieces = kKept / kVector, kTeams = kThreads / kTeam;
  __shared__ R shared[2 * kThreads / 32];
  const int64_t step = kTeam * kVector, first = threadIdx.x % kTeam * kVector;
  for (int64_t base = blockIdx.x * int64_t{kTeams}; base < p.rows; base += gridDim.x * int64_t{kTeams}) {
    const int64_t row = base + threadIdx.x / kTeam;
    const int64_t width = row < p.rows ? p.width : 0;  // a team without a row stays with the others of its warp
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
      if (first + n * step < width) load(first + n * step, kept[n]);
    for (int64_t i = first + kPieces * step; i < width; i += step) {
      R r[kVector];
      load(i, r);
    }
    // Each thread reads again only what it has written itself.
    const auto each = [&](const auto& f) {
#pragma unroll
      for (int n = 0; n < kPieces; ++n)
        if (first + n * step < width) f(first + n * step, kept[n]);
      for (int64_t i = first + kPieces * step; i < width; i += step) {
        R r[kVector];
        read<R, kVector>(out + i, r);
        f(i, r);
      }
    };
    sum_team<kTeam>(sum, shared);
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
      sum_team<kTeam>(sums, shared);
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
    if (first == 0 && row < p.rows) {
      p.rstd[row] = rstd;
      if (p.kind == NormKind::kLayer) p.mean[row] = mean;
    }
  }
}

// The sums over rows that a team keeps are its part of dweight and dbias.
template <typename T, typename Out, int kVector, int kTeam, int kKept, bool kBias>
__global__ void __launch_bounds__(kThreads, kBias || sizeof(T) == 8 || kVector == 1 ? 2 : 4)
    backward(const AddNormBackward<T, Out> p) {
  using R = Accumulator<T>;
  constexpr int kPieces = kKept / kVector, kTeams = kThreads / kTeam;
  __shared__ R shared[2 * kThreads / 32];
  const int64_t team = static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam;
  const int64_t teams = static_cast<int64_t>(gridDim.x) * kTeams;
  R* const parts = static_cast<R*>(p.workspace) + team * p.width;
  R* const bias_parts = kBias ? parts + teams * p.width : nullptr;
  const int64_t step = kTeam * kVector, first = threadIdx.x % kTeam * kVector;
  R dweight[kPieces][kVector] = {}, dbias[kPieces][kVector] = {};
  const auto add_wide = [&](R* to, const R(&x)[kVector], bool start) {
    R sum[kVector] = {};
    if (!start) read<R, kVector>(to, sum);
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum[k] += x[k];
    write<R, kVector>(to, sum);
  };
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kTeams; base < p.rows; base += teams) {
    const int64_t row = base + threadIdx.x / kTeam;
    const bool real = row < p.rows;
    const int64_t width = real ? p.width : 0;
    const R rstd = real ? p.rstd[row] : R(0), mean = real && p.kind == NormKind::kLayer ? p.mean[row] : R(0);
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
      if (first + n * step < width) sum(first + n * step, xhat[n], dy[n]);
    for (int64_t i = first + kPieces * step; i < width; i += step) {
      R x[kVector], g[kVector];
      sum(i, x, g);
    }
    sum_team<kTeam>(sums, shared);
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
      if (first + n * step >= width) continue;
      R dw[kVector], db[kVector];
      finish(first + n * step, xhat[n], dy[n], dw, db);
#pragma unroll
      for (int k = 0; k < kVector; ++k) {
        dweight[n][k] += dw[k];
        if constexpr (kBias) dbias[n][k] += db[k];
      }
    }
    for (int64_t i = first + kPieces * step; i < width; i += step) {
      R x[kVector], g[kVector], dw[kVector], db[kVector];
      load(i, x, g);
      finish(i, x, g, dw, db);
      add_wide(parts + i, dw, row == team);
      if constexpr (kBias) add_wide(bias_parts + i, db, row == team);
    }
  }
#pragma unroll
  for (int n = 0; n < kPieces; ++n) {
    if (first + n * step >= p.width) continue;
    write<R, kVector>(parts + first + n * step, dweight[n]);
    if constexpr (kBias) write<R, kVector>(bias_parts + first + n * step, dbias[n]);
  }
}

// How rows are divided, by their width alone: what a team of half a warp, a warp or a block keeps in registers.
enum class Team { kHalfWarp, kWarp, kBlock };
Team team_of(int64_t width) {
  if (width % 4 != 0) return Team::kBlock;
  return width <= 64 ? Team::kHalfWarp : width <= 1024 ? Team::kWarp : Team::kBlock;
}
int64_t teams_of_block(Team team) {
  return team == Team::kBlock ? 1 : team == Team::kWarp ? kThreads / 32 : kThreads / 16;
}
// Teams of the backward pass.
int64_t row_teams(int64_t rows, int64_t width) {
  const Team team = team_of(width);
  const int64_t each = teams_of_block(team), blocks = (rows + 4 * each - 1) / (4 * each);  // four rows each at least
  return std::clamp<int64_t>(blocks, 1, team == Team::kWarp ? 528 : 1056) * each;
}

template <typename... Pointers>
bool vectors_fit(int64_t width, const Pointers*... pointers) {
  return width % 4 == 0 && ((reinterpret_cast<uintptr_t>(pointers) % (4 * sizeof(Pointers)) == 0) && ...);
}

}  // namespace

template <typename T, typename Out>
void add_norm_forward(const AddNormForward<T, Out>& p, CudaStream stream) {
  if (p.rows == 0) return;
  const bool vectors = vectors_fit(p.width, p.x, p.residual, p.weight, p.bias, p.y, p.residual_out);
  const Team team = vectors ? team_of(p.width) : Team::kBlock;
  const unsigned blocks = grid_for(p.rows, teams_of_block(team));
  const auto kernel = team == Team::kHalfWarp ? forward<T, Out, 4, 16, 4>
                      : team == Team::kWarp   ? forward<T, Out, 4, 32, 32>
                      : vectors               ? forward<T, Out, 4, kThreads, 32>
                                              : forward<T, Out, 1, kThreads, 32>;
  kernel<<<blocks, kThreads, 0, stream>>>(p);
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
  const Team team = team_of(p.width);
  const R* parts = static_cast<const R*>(p.workspace);
  const bool vectors = vectors_fit(p.width, p.dy, p.dresidual_out, p.residual_out, p.weight, p.dx, p.dresidual, parts);
  const auto launch = [&]<int kTeam, int kKept>() {
    const auto kernel =
        p.dbias != nullptr
            ? (vectors ? backward<T, Out, 4, kTeam, kKept, true> : backward<T, Out, 1, kTeam, kKept, true>)
            : (vectors ? backward<T, Out, 4, kTeam, kKept, false> : backward<T, Out, 1, kTeam, kKept, false>);
    kernel<<<static_cast<unsigned>(teams / teams_of_block(team)), kThreads, 0, stream>>>(p);
  };
  if (team == Team::kHalfWarp) launch.template operator()<16, 4>();
  if (team == Team::kWarp) p.width <= 768 ? launch.template operator()<32, 24>() : launch.template operator()<32, 32>();
  if (team == Team::kBlock) launch.template operator()<kThreads, 16>();
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
