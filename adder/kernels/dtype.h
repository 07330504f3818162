#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

namespace adder::kernels {

// 16-bit floating point values as they lie in memory.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// What a kernel accumulates in: double for double inputs, float for all others.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline float to_float(bfloat16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}
inline float to_float(float x) {
  return x;
}
inline double to_float(double x) {
  return x;
}
inline float to_float(float16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31u, mantissa = x.bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

// Round to nearest, ties to even; NaN stays NaN.
template <typename T>
T from_float(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, double>) {
    return x;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if (std::isnan(x)) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
  } else {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    if (std::isnan(x)) return {static_cast<uint16_t>(sign | 0x7E00u)};
    const float magnitude = std::fabs(x);
    if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00u)};
    if (magnitude < 6.103515625e-5f)  // subnormal in 16 bits: in units of 2^-24
      return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 24))))};
    const uint32_t rebased = (bits & 0x7FFFFFFFu) - (112u << 23);
    return {static_cast<uint16_t>(sign | ((rebased + 0xFFFu + ((rebased >> 13) & 1u)) >> 13))};
  }
}

}  // namespace adder::kernels
