#pragma once

#include <cmath>
#include <vector>

#include "adder/kernels/add_norm.h"

// The truth for the tests of add_norm: plain loops in double.
namespace adder::kernels::reference {

struct AddNormResult {
  std::vector<double> y, residual_out;  // (rows, D)
};

struct AddNormGradients {
  std::vector<double> dresidual;       // (rows, D), also the gradient of x
  std::vector<double> dweight, dbias;  // (D)
};

struct AddNormArguments {
  int64_t rows, width;
  NormKind kind;
  double eps;
  std::vector<double> x, residual;   // (rows, D); residual may be empty
  std::vector<double> weight, bias;  // (D); bias may be empty
};

struct RowMoments {
  double mean = 0, rstd = 0;
};

inline RowMoments row_moments(const double* r, int64_t width, NormKind kind, double eps) {
  RowMoments m;
  if (kind == NormKind::kLayer) {
    for (int64_t i = 0; i < width; ++i) m.mean += r[i];
    m.mean /= static_cast<double>(width);
  }
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += (r[i] - m.mean) * (r[i] - m.mean);
  m.rstd = 1 / std::sqrt(squares / static_cast<double>(width) + eps);
  return m;
}

inline AddNormResult add_norm(const AddNormArguments& a) {
  AddNormResult out{a.x, a.x};
  for (int64_t row = 0; row < a.rows; ++row) {
    double* r = out.residual_out.data() + row * a.width;
    if (!a.residual.empty())
      for (int64_t i = 0; i < a.width; ++i) r[i] += a.residual[row * a.width + i];
    const RowMoments m = row_moments(r, a.width, a.kind, a.eps);
    for (int64_t i = 0; i < a.width; ++i)
      out.y[row * a.width + i] = (r[i] - m.mean) * m.rstd * a.weight[i] + (a.bias.empty() ? 0 : a.bias[i]);
  }
  return out;
}

// dresidual_out may be empty.
inline AddNormGradients add_norm_backward(const AddNormArguments& a, const std::vector<double>& dy,
                                          const std::vector<double>& dresidual_out) {
  const AddNormResult forward = add_norm(a);
  AddNormGradients out;
  out.dresidual.resize(a.x.size());
  out.dweight.resize(a.width);
  out.dbias.resize(a.width);
  const auto width = static_cast<double>(a.width);
  for (int64_t row = 0; row < a.rows; ++row) {
    const double *r = forward.residual_out.data() + row * a.width, *g = dy.data() + row * a.width;
    const RowMoments m = row_moments(r, a.width, a.kind, a.eps);
    double sum = 0, product = 0;
    for (int64_t i = 0; i < a.width; ++i) {
      const double normed = (r[i] - m.mean) * m.rstd;
      sum += g[i] * a.weight[i] / width;
      product += g[i] * a.weight[i] * normed / width;
      out.dweight[i] += g[i] * normed;
      out.dbias[i] += g[i];
    }
    if (a.kind == NormKind::kRms) sum = 0;
    for (int64_t i = 0; i < a.width; ++i) {
      const double normed = (r[i] - m.mean) * m.rstd;
      out.dresidual[row * a.width + i] = m.rstd * (g[i] * a.weight[i] - sum - normed * product) +
                                         (dresidual_out.empty() ? 0 : dresidual_out[row * a.width + i]);
    }
  }
  return out;
}

}  // namespace adder::kernels::reference
