#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "adder/kernels/dtype.h"

// Numbers on the device: 16-bit types widened and rounded by the hardware, and complex numbers beside real ones, so
// that one text serves both.
namespace adder::kernels::cuda {

__device__ __forceinline__ float widen(float x) {
  return x;
}
__device__ __forceinline__ double widen(double x) {
  return x;
}
__device__ __forceinline__ float widen(bfloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
__device__ __forceinline__ float widen(float16 x) {
  return __half2float(__ushort_as_half(x.bits));
}

// Round to nearest, ties to even.
template <typename T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, bfloat16>)
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  else if constexpr (std::is_same_v<T, float16>)
    return {__half_as_ushort(__float2half_rn(x))};
  else
    return x;
}

template <typename R>
struct Complex {
  R re, im;
};

template <typename R, bool kComplex>
using Number = std::conditional_t<kComplex, Complex<R>, R>;

#define ADDER_REAL(R) template <typename R, std::enable_if_t<std::is_floating_point_v<R>, int> = 0>
ADDER_REAL(R) __device__ __forceinline__ R real_part(R x) {
  return x;
}
ADDER_REAL(R) __device__ __forceinline__ R conjugate(R x) {
  return x;
}
ADDER_REAL(R) __device__ __forceinline__ R exponential(R x) {
  return exp(x);
}
ADDER_REAL(R) __device__ __forceinline__ R magnitude(R x) {
  return fabs(x);
}
ADDER_REAL(R) __device__ __forceinline__ R reciprocal(R x) {
  return R(1) / x;
}
ADDER_REAL(R) __device__ __forceinline__ R sum_across_number(R x, int width) {
  return sum_across(x, width);
}
template <typename R>
__device__ __forceinline__ Complex<R> operator+(Complex<R> x, Complex<R> y) {
  return {x.re + y.re, x.im + y.im};
}
template <typename R>
__device__ __forceinline__ Complex<R> operator-(Complex<R> x, Complex<R> y) {
  return {x.re - y.re, x.im - y.im};
}
// Which product is fused with which sum is said, not left to the compiler: the same step gives the same bits wherever
// in an unrolled loop it stands.
template <typename R>
__device__ __forceinline__ Complex<R> operator*(Complex<R> x, Complex<R> y) {
  return {fma(-x.im, y.im, x.re * y.re), fma(x.re, y.im, x.im * y.re)};
}
// x y + z
ADDER_REAL(R) __device__ __forceinline__ R multiply_add(R x, R y, R z) {
  return fma(x, y, z);
}
template <typename R>
__device__ __forceinline__ Complex<R> multiply_add(Complex<R> x, Complex<R> y, Complex<R> z) {
  return {fma(-x.im, y.im, fma(x.re, y.re, z.re)), fma(x.im, y.re, fma(x.re, y.im, z.im))};
}
// Re(x y) + z
ADDER_REAL(R) __device__ __forceinline__ R add_real_product(R x, R y, R z) {
  return fma(x, y, z);
}
template <typename R>
__device__ __forceinline__ R add_real_product(Complex<R> x, Complex<R> y, R z) {
  return fma(-x.im, y.im, fma(x.re, y.re, z));
}
template <typename R>
__device__ __forceinline__ Complex<R> operator*(R s, Complex<R> x) {
  return {s * x.re, s * x.im};
}
template <typename R>
__device__ __forceinline__ R real_part(Complex<R> x) {
  return x.re;
}
template <typename R>
__device__ __forceinline__ Complex<R> conjugate(Complex<R> x) {
  return {x.re, -x.im};
}
template <typename R>
__device__ __forceinline__ Complex<R> exponential(Complex<R> x) {
  R s, c;
  if constexpr (std::is_same_v<R, float>)
    sincosf(x.im, &s, &c);
  else
    sincos(x.im, &s, &c);
  const R size = exp(x.re);
  return {size * c, size * s};
}
template <typename R>
__device__ __forceinline__ R magnitude(Complex<R> x) {
  return fabs(x.re) + fabs(x.im);
}
template <typename R>
__device__ __forceinline__ Complex<R> reciprocal(Complex<R> x) {
  const R scale = R(1) / (x.re * x.re + x.im * x.im);
  return {x.re * scale, -x.im * scale};
}
template <typename R>
__device__ __forceinline__ Complex<R> sum_across_number(Complex<R> x, int width) {
  return {sum_across(x.re, width), sum_across(x.im, width)};
}

template <typename Num>
struct NumberOf;
template <>
struct NumberOf<float> {
  using Real = float;
  static __device__ __forceinline__ float of(float x) { return x; }
};
template <>
struct NumberOf<double> {
  using Real = double;
  static __device__ __forceinline__ double of(double x) { return x; }
};
template <typename R>
struct NumberOf<Complex<R>> {
  using Real = R;
  static __device__ __forceinline__ Complex<R> of(R x) { return {x, R(0)}; }
};

// log(1 + e^x)
__device__ __forceinline__ float softplus(float x) {
  return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
}
__device__ __forceinline__ double softplus(double x) {
  return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}
template <typename R>
__device__ __forceinline__ R sigmoid(R x) {
  return R(1) / (R(1) + exp(-x));
}

}  // namespace adder::kernels::cuda
