#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "adder/kernels/softmax_rows.h"

// The truth for the tests of softmax_rows: plain loops in double.
namespace adder::kernels::reference {

struct SoftmaxRow {
  double loss = 0;
  int64_t prediction = 0;
  std::vector<double> gradient;
};

inline SoftmaxRow softmax_row(const std::vector<double>& logits, int64_t target, int64_t ignore_index, double scale) {
  SoftmaxRow out;
  out.gradient.resize(logits.size());
  const auto larger = [](double a, double b) { return std::isnan(b) ? false : std::isnan(a) || a > b; };
  for (size_t i = 1; i < logits.size(); ++i)
    if (larger(logits[i], logits[out.prediction])) out.prediction = static_cast<int64_t>(i);
  if (target == ignore_index) return out;
  const double largest = logits[out.prediction];
  double sum = 0;
  for (const double x : logits) sum += std::exp(x - largest);
  out.loss = std::log(sum) + (largest - logits[target]);
  for (size_t i = 0; i < logits.size(); ++i) {
    const double onehot = static_cast<int64_t>(i) == target ? 1 : 0;
    out.gradient[i] = (std::exp(logits[i] - largest) / sum - onehot) * scale;
  }
  return out;
}

}  // namespace adder::kernels::reference
