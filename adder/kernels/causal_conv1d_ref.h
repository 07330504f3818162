#pragma once

#include <cmath>
#include <vector>

#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/selective_scan_plan.h"

// The convolution as plain loops in double: the truth that every other form is tested against.
namespace adder::kernels::ref {

// One channel of one sequence: E = [initial window; the steps that are not masked], y_j = act(bias + sum_k weight_k
// E_(j + k)).
struct ConvSequence {
  std::vector<int64_t> times;  // of the steps that are not masked, in the direction of time
  std::vector<double> E;

  ConvSequence(const CausalConv1dInputs<double>& p, const SequenceRows& rows, int64_t s, int64_t d) {
    const View2<const bool> mask = p.layout.mask;
    for (int64_t r = 0; r < p.width - 1; ++r)
      E.push_back(p.initial_window != nullptr ? p.initial_window[(s * (p.width - 1) + r) * p.channels + d] : 0.0);
    for (int64_t j = 0; j < rows.length; ++j) {
      const int64_t t = rows.time(j);
      if (mask.data != nullptr && !mask.data[rows.b * mask.row + t * mask.column]) continue;
      times.push_back(t);
      E.push_back(p.x.data[rows.b * p.x.b + t * p.x.l + d * p.x.d]);
    }
  }

  double before_activation(const CausalConv1dInputs<double>& p, size_t j, int64_t d) const {
    double sum = p.bias.data != nullptr ? p.bias.data[d * p.bias.d] : 0.0;
    for (int64_t k = 0; k < p.width; ++k) sum += p.weight.data[d * p.weight.row + k * p.weight.column] * E[j + k];
    return sum;
  }
};

inline void causal_conv1d_forward(const CausalConv1dForward<double>& p) {
  for (int64_t s = 0; s < p.layout.sequences; ++s)
    for (int64_t d = 0; d < p.channels; ++d) {
      const SequenceRows rows(p.layout, s);
      const ConvSequence sequence(p, rows, s, d);
      double* y = p.y.data + rows.b * p.y.b + d * p.y.d;
      for (int64_t j = 0; j < rows.length; ++j) y[rows.time(j) * p.y.l] = 0;
      const size_t n = sequence.times.size();
      for (size_t j = 0; j < n; ++j) {
        const double a = sequence.before_activation(p, j, d);
        y[sequence.times[j] * p.y.l] = p.activation == ConvActivation::kSilu ? a / (1 + std::exp(-a)) : a;
      }
      for (int64_t r = 0; r < p.width - 1; ++r)
        p.final_window[(s * (p.width - 1) + r) * p.channels + d] = sequence.E[n + r];
    }
}

inline void causal_conv1d_backward(const CausalConv1dBackward<double>& p) {
  const int64_t window = p.width - 1;
  for (int64_t i = 0; i < p.channels * p.width; ++i) p.dweight[i] = 0;
  if (p.dbias != nullptr)
    for (int64_t d = 0; d < p.channels; ++d) p.dbias[d] = 0;
  for (int64_t s = 0; s < p.layout.sequences; ++s)
    for (int64_t d = 0; d < p.channels; ++d) {
      const SequenceRows rows(p.layout, s);
      const ConvSequence sequence(p, rows, s, d);
      const size_t n = sequence.times.size();
      std::vector<double> dE(sequence.E.size(), 0.0);
      for (int64_t r = 0; r < window && p.dfinal_window != nullptr; ++r)
        dE[n + r] = p.dfinal_window[(s * window + r) * p.channels + d];
      for (size_t j = 0; j < n; ++j) {
        double da = p.dy.data[rows.b * p.dy.b + sequence.times[j] * p.dy.l + d * p.dy.d];
        if (p.activation == ConvActivation::kSilu) {
          const double a = sequence.before_activation(p, j, d), sigmoid = 1 / (1 + std::exp(-a));
          da *= sigmoid * (1 + a * (1 - sigmoid));
        }
        for (int64_t k = 0; k < p.width; ++k) {
          p.dweight[d * p.width + k] += da * sequence.E[j + k];
          dE[j + k] += da * p.weight.data[d * p.weight.row + k * p.weight.column];
        }
        if (p.dbias != nullptr) p.dbias[d] += da;
      }
      double* dx = p.dx.data + rows.b * p.dx.b + d * p.dx.d;
      for (int64_t j = 0; j < rows.length; ++j) dx[rows.time(j) * p.dx.l] = 0;
      for (size_t j = 0; j < n; ++j) dx[sequence.times[j] * p.dx.l] = dE[j + window];
      for (int64_t r = 0; r < window && p.dinitial_window != nullptr; ++r)
        p.dinitial_window[(s * window + r) * p.channels + d] = dE[r];
    }
}

}  // namespace adder::kernels::ref
