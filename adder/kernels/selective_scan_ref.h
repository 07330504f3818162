#pragma once

#include <cmath>
#include <complex>
#include <type_traits>
#include <vector>

#include "adder/kernels/selective_scan.h"

// The selective scan as plain loops in double, in the paper's letters. Every other version is tested against this one.
namespace adder::kernels::reference {

// Bbar / (delta B) and its derivative by x = delta A: 1 and 0 (Euler), (e^x - 1)/x and ((x - 1) e^x + 1)/x^2
// (zero-order hold).
template <typename Num>
void discretization_factor(Discretization rule, Num x, Num& phi, Num& dphi) {
  phi = 1.0;
  dphi = 0.0;
  if (rule == Discretization::kEuler) return;
  if (std::abs(x) < 1.0) {
    double factorial = 1;
    Num power = 1.0;  // x^k
    for (int k = 1; k < 24; ++k) {
      factorial *= k + 1;  // (k + 1)!
      dphi += static_cast<double>(k) / factorial * power;
      power *= x;
      phi += power / factorial;
    }
  } else {
    phi = (std::exp(x) - 1.0) / x;
    dphi = (std::exp(x) - phi) / x;
  }
}

template <typename Num>
class Scan {
 public:
  static constexpr bool kComplex = !std::is_same_v<Num, double>;

  explicit Scan(const SelectiveScanInputs<double>& inputs) : p(inputs) {}

  int64_t first(int64_t s) const { return p.layout.cu_seqlens != nullptr ? p.layout.cu_seqlens[s] : 0; }
  int64_t last(int64_t s) const {
    return p.layout.cu_seqlens != nullptr ? p.layout.cu_seqlens[s + 1] : p.layout.length;
  }
  int64_t row(int64_t s) const { return p.layout.cu_seqlens != nullptr ? 0 : s; }

  // The steps of sequence s in the order of its time, masked ones left out.
  std::vector<int64_t> times(int64_t s) const {
    std::vector<int64_t> t;
    const auto& mask = p.layout.mask;
    for (int64_t i = first(s); i < last(s); ++i)
      if (mask.data == nullptr || mask.data[row(s) * mask.row + i * mask.column]) t.push_back(i);
    return p.layout.reverse ? std::vector<int64_t>(t.rbegin(), t.rend()) : t;
  }

  static Num number(const double* data, int64_t index) {
    if constexpr (kComplex)
      return {data[2 * index], data[2 * index + 1]};
    else
      return data[index];
  }
  static void set(double* data, int64_t index, Num value) {
    if constexpr (kComplex) {
      data[2 * index] = value.real();
      data[2 * index + 1] = value.imag();
    } else {
      data[index] = value;
    }
  }
  static void accumulate(double* data, int64_t index, Num value) {
    if constexpr (kComplex) {
      data[2 * index] += value.real();
      data[2 * index + 1] += value.imag();
    } else {
      data[index] += value;
    }
  }
  static double real(Num value) {
    if constexpr (kComplex)
      return value.real();
    else
      return value;
  }
  static Num conj(Num value) {
    if constexpr (kComplex)
      return std::conj(value);
    else
      return value;
  }
  // A row of per-step numbers may have a stride between its reals.
  static Num strided(const View4<const double>& view, int64_t b, int64_t t, int64_t g, int64_t n) {
    const double* at = view.data + b * view.b + t * view.l + g * view.g;
    if constexpr (kComplex)
      return {at[2 * n * view.n], at[(2 * n + 1) * view.n]};
    else
      return at[n * view.n];
  }
  Num A(int64_t d, int64_t n) const { return number(p.A.data, d * p.A.row + n * p.A.column); }
  Num B(int64_t b, int64_t t, int64_t d, int64_t n) const {
    if (p.constant_B) return number(p.B_const.data, d * p.B_const.row + n * p.B_const.column);
    return strided(p.B_step, b, t, d / (p.channels / p.groups), n);
  }
  Num C(int64_t b, int64_t t, int64_t d, int64_t n) const {
    if (p.constant_C) return number(p.C_const.data, d * p.C_const.row + n * p.C_const.column);
    return strided(p.C_step, b, t, d / (p.channels / p.groups), n);
  }
  double D(int64_t d) const { return p.D.data != nullptr ? p.D.data[d * p.D.d] : 0.0; }
  double pre_delta(int64_t b, int64_t t, int64_t d) const {
    return p.delta.data[b * p.delta.b + t * p.delta.l + d * p.delta.d] +
           (p.delta_bias.data != nullptr ? p.delta_bias.data[d * p.delta_bias.d] : 0.0);
  }
  double delta(int64_t b, int64_t t, int64_t d) const {
    const double x = pre_delta(b, t, d);
    return p.delta_softplus ? std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x))) : x;
  }
  static double at(const View3<const double>& view, int64_t b, int64_t t, int64_t d) {
    return view.data[b * view.b + t * view.l + d * view.d];
  }
  static double& at(const View3<double>& view, int64_t b, int64_t t, int64_t d) {
    return view.data[b * view.b + t * view.l + d * view.d];
  }
  // The states h_0 .. h_T of one channel and one n along `t`.
  std::vector<Num> states(int64_t s, const std::vector<int64_t>& t, int64_t d, int64_t n) const {
    std::vector<Num> h(t.size() + 1, Num(0.0));
    if (p.initial_state != nullptr) h[0] = number(p.initial_state, (s * p.channels + d) * p.state + n);
    for (size_t i = 0; i < t.size(); ++i) {
      const double dt = delta(row(s), t[i], d);
      Num phi, dphi;
      discretization_factor(p.discretization, Num(dt * A(d, n)), phi, dphi);
      h[i + 1] = std::exp(Num(dt * A(d, n))) * h[i] + dt * phi * B(row(s), t[i], d, n) * at(p.u, row(s), t[i], d);
    }
    return h;
  }

  const SelectiveScanInputs<double>& p;
};

template <typename Num>
void forward(const SelectiveScanForward<double>& p) {
  const Scan<Num> scan(p);
  const double twice = Scan<Num>::kComplex ? 2.0 : 1.0;
  for (int64_t s = 0; s < p.layout.sequences; ++s) {
    const int64_t b = scan.row(s);
    const std::vector<int64_t> t = scan.times(s);
    for (int64_t d = 0; d < p.channels; ++d) {
      for (int64_t i = scan.first(s); i < scan.last(s); ++i) Scan<Num>::at(p.y, b, i, d) = 0;
      for (int64_t n = 0; n < p.state; ++n) {
        const std::vector<Num> h = scan.states(s, t, d, n);
        for (size_t i = 0; i < t.size(); ++i)
          Scan<Num>::at(p.y, b, t[i], d) += twice * Scan<Num>::real(scan.C(b, t[i], d, n) * h[i + 1]);
        Scan<Num>::set(p.final_state, (s * p.channels + d) * p.state + n, h.back());
      }
      for (const int64_t i : t) {
        double& y = Scan<Num>::at(p.y, b, i, d);
        y += scan.D(d) * Scan<Num>::at(p.u, b, i, d);
        if (p.z.data != nullptr) {
          const double z = Scan<Num>::at(p.z, b, i, d);
          y *= z / (1.0 + std::exp(-z));
        }
      }
    }
  }
}

// All gradients are set, not added to.
template <typename Num>
void backward(const SelectiveScanBackward<double>& p) {
  const Scan<Num> scan(p);
  const double twice = Scan<Num>::kComplex ? 2.0 : 1.0;
  const int64_t parts = Scan<Num>::kComplex ? 2 : 1;
  const auto clear = [](double* data, int64_t count) {
    if (data != nullptr) std::fill_n(data, count, 0.0);
  };
  for (double* matrix : {p.dA, p.dB_const, p.dC_const}) clear(matrix, p.channels * p.state * parts);
  clear(p.dD, p.channels);
  clear(p.ddelta_bias, p.channels);
  clear(p.dinitial_state, p.layout.sequences * p.channels * p.state * parts);
  for (int64_t b = 0; b < p.layout.batch; ++b)
    for (int64_t t = 0; t < p.layout.length; ++t) {
      for (int64_t d = 0; d < p.channels; ++d)
        for (const View3<double>& view : {p.du, p.ddelta, p.dz})
          if (view.data != nullptr) Scan<Num>::at(view, b, t, d) = 0;
      for (int64_t g = 0; g < p.groups; ++g)
        for (int64_t n = 0; n < p.state * parts; ++n)
          for (const View4<double>& view : {p.dB_step, p.dC_step})
            if (view.data != nullptr) view.data[b * view.b + t * view.l + g * view.g + n * view.n] = 0;
    }
  const auto add_step = [&](const View4<double>& view, int64_t b, int64_t t, int64_t g, int64_t n, Num value) {
    double* at = view.data + b * view.b + t * view.l + g * view.g;
    if constexpr (Scan<Num>::kComplex) {
      at[2 * n * view.n] += value.real();
      at[(2 * n + 1) * view.n] += value.imag();
    } else {
      at[n * view.n] += value;
    }
  };
  for (int64_t s = 0; s < p.layout.sequences; ++s) {
    const int64_t b = scan.row(s);
    const std::vector<int64_t> t = scan.times(s);
    for (int64_t d = 0; d < p.channels; ++d) {
      const int64_t g = d / (p.channels / p.groups);
      std::vector<double> y(t.size(), 0.0), dy(t.size()), ddelta(t.size(), 0.0);
      for (size_t i = 0; i < t.size(); ++i) {
        dy[i] = Scan<Num>::at(p.dy, b, t[i], d);
        if (p.z.data != nullptr) {
          const double z = Scan<Num>::at(p.z, b, t[i], d);
          dy[i] *= z / (1.0 + std::exp(-z));
        }
        const double u = Scan<Num>::at(p.u, b, t[i], d);
        y[i] = scan.D(d) * u;
        Scan<Num>::at(p.du, b, t[i], d) += scan.D(d) * dy[i];
        if (p.dD != nullptr) p.dD[d] += dy[i] * u;
      }
      for (int64_t n = 0; n < p.state; ++n) {
        const std::vector<Num> h = scan.states(s, t, d, n);
        const int64_t index = (s * p.channels + d) * p.state + n;
        const Num A = scan.A(d, n);
        Num dh = p.dfinal_state != nullptr ? Scan<Num>::number(p.dfinal_state, index) : Num(0.0);
        for (size_t i = t.size(); i-- > 0;) {
          const Num B = scan.B(b, t[i], d, n), C = scan.C(b, t[i], d, n);
          const double dt = scan.delta(b, t[i], d), u = Scan<Num>::at(p.u, b, t[i], d);
          const Num x = dt * A, a = std::exp(x);
          Num phi, dphi;
          discretization_factor(p.discretization, x, phi, dphi);
          y[i] += twice * Scan<Num>::real(C * h[i + 1]);
          dh += twice * dy[i] * Scan<Num>::conj(C);
          const Num dC = twice * dy[i] * Scan<Num>::conj(h[i + 1]);
          const Num dx = dh * Scan<Num>::conj(a * h[i]) + dh * Scan<Num>::conj(dt * u * B * dphi);
          const Num dB = dh * Scan<Num>::conj(dt * u * phi);
          ddelta[i] += Scan<Num>::real(dx * Scan<Num>::conj(A)) + Scan<Num>::real(dh * Scan<Num>::conj(u * phi * B));
          Scan<Num>::at(p.du, b, t[i], d) += Scan<Num>::real(dh * Scan<Num>::conj(dt * phi * B));
          Scan<Num>::accumulate(p.dA, d * p.state + n, dt * dx);
          if (!p.constant_B)
            add_step(p.dB_step, b, t[i], g, n, dB);
          else
            Scan<Num>::accumulate(p.dB_const, d * p.state + n, dB);
          if (!p.constant_C)
            add_step(p.dC_step, b, t[i], g, n, dC);
          else
            Scan<Num>::accumulate(p.dC_const, d * p.state + n, dC);
          dh *= Scan<Num>::conj(a);
        }
        if (p.dinitial_state != nullptr) Scan<Num>::accumulate(p.dinitial_state, index, dh);
      }
      for (size_t i = 0; i < t.size(); ++i) {
        if (p.delta_softplus) ddelta[i] /= 1.0 + std::exp(-scan.pre_delta(b, t[i], d));
        Scan<Num>::at(p.ddelta, b, t[i], d) = ddelta[i];
        if (p.ddelta_bias != nullptr) p.ddelta_bias[d] += ddelta[i];
        if (p.z.data != nullptr) {
          const double z = Scan<Num>::at(p.z, b, t[i], d), sigma = 1.0 / (1.0 + std::exp(-z));
          Scan<Num>::at(p.dz, b, t[i], d) = Scan<Num>::at(p.dy, b, t[i], d) * y[i] * sigma * (1.0 + z * (1.0 - sigma));
        }
      }
    }
  }
}

inline void selective_scan_forward(const SelectiveScanForward<double>& p) {
  p.complex ? forward<std::complex<double>>(p) : forward<double>(p);
}

inline void selective_scan_backward(const SelectiveScanBackward<double>& p) {
  p.complex ? backward<std::complex<double>>(p) : backward<double>(p);
}

}  // namespace adder::kernels::reference
