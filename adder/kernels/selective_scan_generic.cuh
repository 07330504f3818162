#pragma once

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/cuda_numbers.cuh"
#include "adder/kernels/selective_scan.h"
#include "adder/kernels/sequence_rows.cuh"

// What the generic kernels of both directions share. They serve every option, any strides and any number of states: a
// group of lanes walks one channel through time, each lane with every width-th state, kept in memory between pieces.
namespace adder::kernels::cuda {

// Lanes that share a channel.
inline int scan_lanes(int64_t state) {
  int width = 1;
  while (width < 32 && width < state) width *= 2;
  return width;
}

// (e^x - 1) / x and its derivative ((x - 1) e^x + 1) / x^2, given e^x.
template <typename Num>
__device__ __forceinline__ void zoh_factor(Num x, Num exp_x, Num& phi, Num& dphi) {
  using R = typename NumberOf<Num>::Real;
  constexpr int kTerms = std::is_same_v<R, float> ? 12 : 24;
  if (magnitude(x) < R(1)) {
    phi = NumberOf<Num>::of(1);
    dphi = NumberOf<Num>::of(0);
    Num power = NumberOf<Num>::of(1);  // x^(k - 1) / (k + 1)!, in parts
    R factorial = 1;
    for (int k = 1; k < kTerms; ++k) {
      factorial *= R(k + 1);
      const R inverse = R(1) / factorial;
      dphi = dphi + (R(k) * inverse) * power;
      power = power * x;
      phi = phi + inverse * power;
    }
  } else {
    const Num inverse = reciprocal(x);
    phi = (exp_x - NumberOf<Num>::of(1)) * inverse;
    dphi = (exp_x - phi) * inverse;
  }
}

// The inputs as one thread reads them.
template <typename T, bool kComplex>
struct ScanReader {
  using R = Accumulator<T>;
  using Num = Number<R, kComplex>;
  const SelectiveScanInputs<T>& p;

  static __device__ __forceinline__ Num number(const R* data, int64_t index) {
    if constexpr (kComplex)
      return {data[2 * index], data[2 * index + 1]};
    else
      return data[index];
  }
  static __device__ __forceinline__ void set(R* data, int64_t index, Num x) {
    if constexpr (kComplex) {
      data[2 * index] = x.re;
      data[2 * index + 1] = x.im;
    } else {
      data[index] = x;
    }
  }
  static __device__ __forceinline__ Num step_number(const View4<const T>& v, int64_t b, int64_t t, int64_t g,
                                                    int64_t n) {
    const T* at = v.data + b * v.b + t * v.l + g * v.g;
    if constexpr (kComplex)
      return {widen(at[2 * n * v.n]), widen(at[(2 * n + 1) * v.n])};
    else
      return widen(at[n * v.n]);
  }
  __device__ __forceinline__ Num A(int64_t d, int64_t n) const {
    return number(p.A.data, d * p.A.row + n * p.A.column);
  }
  __device__ __forceinline__ Num B(int64_t b, int64_t t, int64_t g, int64_t d, int64_t n) const {
    return p.constant_B ? number(p.B_const.data, d * p.B_const.row + n * p.B_const.column)
                        : step_number(p.B_step, b, t, g, n);
  }
  __device__ __forceinline__ Num C(int64_t b, int64_t t, int64_t g, int64_t d, int64_t n) const {
    return p.constant_C ? number(p.C_const.data, d * p.C_const.row + n * p.C_const.column)
                        : step_number(p.C_step, b, t, g, n);
  }
  static __device__ __forceinline__ R at(const View3<const T>& v, int64_t b, int64_t t, int64_t d) {
    return widen(v.data[b * v.b + t * v.l + d * v.d]);
  }
  __device__ __forceinline__ R skip(int64_t d) const { return p.D.data != nullptr ? p.D.data[d * p.D.d] : R(0); }
  __device__ __forceinline__ R pre_delta(int64_t b, int64_t t, int64_t d) const {
    return at(p.delta, b, t, d) + (p.delta_bias.data != nullptr ? p.delta_bias.data[d * p.delta_bias.d] : R(0));
  }
  __device__ __forceinline__ R delta(int64_t b, int64_t t, int64_t d) const {
    const R x = pre_delta(b, t, d);
    return p.delta_softplus ? softplus(x) : x;
  }
  // e^x and the factor of delta B, by x = delta A.
  __device__ __forceinline__ void discretize(Num x, Num& a, Num& phi, Num& dphi) const {
    a = exponential(x);
    phi = NumberOf<Num>::of(1);
    dphi = NumberOf<Num>::of(0);
    if (p.discretization == Discretization::kZoh) zoh_factor(x, a, phi, dphi);
  }
};

}  // namespace adder::kernels::cuda
