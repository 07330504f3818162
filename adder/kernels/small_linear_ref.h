#pragma once

#include <cstdint>
#include <vector>

// The truth for the tests of small_linear: plain loops in double.
namespace adder::kernels::reference {

// x (M, I), weight (O, I), bias (O) or empty; the result is (M, O).
inline std::vector<double> small_linear(int64_t rows, int64_t in, int64_t out, const std::vector<double>& x,
                                        const std::vector<double>& weight, const std::vector<double>& bias) {
  std::vector<double> y(rows * out);
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t o = 0; o < out; ++o) {
      double sum = bias.empty() ? 0 : bias[o];
      for (int64_t i = 0; i < in; ++i) sum += x[m * in + i] * weight[o * in + i];
      y[m * out + o] = sum;
    }
  return y;
}

}  // namespace adder::kernels::reference
