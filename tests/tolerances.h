#pragma once

#include <cmath>
#include <string>

// The one place that says how far a result may lie from the double reference. Relative to the largest reference value
// of a tensor
// (`scale`) for sums over many terms, since single elements may cancel.
namespace adder::tests {

struct Tolerance {
  double relative;  // of the element
  double scaled;    // of the tensor's largest magnitude
};

inline constexpr Tolerance kFloat32Forward{2e-6, 2e-6};
inline constexpr Tolerance kFloat32Backward{1e-5, 1e-5};
inline constexpr Tolerance kFloat64Forward{1e-12, 1e-13};
inline constexpr Tolerance kFloat64Backward{1e-11, 1e-12};
// bf16 and fp16 round once at the store; sums inside are float32.
inline constexpr Tolerance kBFloat16{5e-3, 1e-5};
inline constexpr Tolerance kFloat16{6e-4, 1e-5};

// Logits of a whole model in float32 against another program's, by the largest.
inline constexpr double kPeerLogits = 1e-4;

inline bool near(double got, double expected, double scale, Tolerance tolerance) {
  if (std::isnan(expected) || std::isnan(got)) return std::isnan(expected) && std::isnan(got);
  if (std::isinf(expected) || std::isinf(got)) return got == expected;
  return std::fabs(got - expected) <= tolerance.relative * std::fabs(expected) + tolerance.scaled * scale;
}

}  // namespace adder::tests
