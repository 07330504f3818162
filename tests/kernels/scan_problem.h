#pragma once

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "adder/kernels/selective_scan.h"
#include "tests/device.h"
#ifdef ADDER_CUDA
#include "adder/kernels/selective_scan_cuda.h"
#endif

namespace adder::tests {

struct ScanShape {
  int64_t B = 2, L = 70, D = 40, N = 6, G = 1;
  bool complex = false, zoh = false, B_const = false, C_const = false;
  bool skip = true, gate = true, bias = true, softplus = true;
  bool initial = true, mask = false, reverse = false, strided = false;
  std::vector<int64_t> cu_seqlens;  // not empty: packed, B = 1
  double delta_scale = 1;
  bool negative = false;  // every fifth delta below zero, without softplus
  int64_t before_B = 0;   // values in front of a row of B and of C, as where they share it with delta's projection

  int64_t sequences() const { return cu_seqlens.empty() ? B : static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

template <typename T>
int64_t backward_workspace_bytes(const kernels::SelectiveScanInputs<T>& p) {
#ifdef ADDER_CUDA
  if (current_device() == Device::kCuda) return kernels::cuda::selective_scan_backward_workspace_bytes(p);
#endif
  return kernels::cpu::selective_scan_backward_workspace_bytes(p);
}

// Random inputs, buffers and params of one scan in the type T. Two problems of one shape and seed hold the same values,
// rounded to the types In (what both start from) and T.
template <typename T, typename In = T>
class ScanProblem {
 public:
  using R = kernels::Accumulator<T>;

  explicit ScanProblem(const ScanShape& s, uint64_t seed = 1) : shape(s), random_(seed) {
    const int64_t parts = s.complex ? 2 : 1, rows = s.B * s.L, S = s.sequences();
    wide_ = s.strided ? 2 * s.D + 3 : s.D;
    u = values<T, In>(rows * wide_, 1);
    delta = values<T, In>(rows * wide_, s.delta_scale);
    z = values<T, In>(rows * wide_, 1);
    dy = values<T, In>(rows * wide_, 1);
    B_step = values<T, In>(rows * (s.before_B + s.G * s.N * parts), 1);
    C_step = values<T, In>(rows * (s.before_B + s.G * s.N * parts), 1);
    A = values<R, float>(s.D * s.N * parts, 1);
    for (int64_t i = 0; i < s.D * s.N; ++i) A[i * parts] = static_cast<R>(-std::fabs(A[i * parts]) - 0.1);
    B_const = values<R, float>(s.D * s.N * parts, 1);
    C_const = values<R, float>(s.D * s.N * parts, 1);
    skip = values<R, float>(s.D, 1);
    bias = values<R, float>(s.D, 0.5);
    initial = values<R, float>(S * s.D * s.N * parts, 1);
    dfinal = values<R, float>(S * s.D * s.N * parts, 1);
    if (!s.softplus)
      for (T& x : delta) x = positive(x);
    if (s.negative)
      for (size_t i = 0; i < delta.size(); i += 5) delta[i] = kernels::from_float<T>(-kernels::to_float(delta[i]));
    cu_seqlens.assign(s.cu_seqlens.begin(), s.cu_seqlens.end());
    mask.resize(rows);
    for (int64_t i = 0; i < rows; ++i) mask[i] = random_() % 4 != 0;

    const T nan = kernels::from_float<T>(std::numeric_limits<R>::quiet_NaN());
    const R r_nan = std::numeric_limits<R>::quiet_NaN();
    for (auto* out : {&y, &du, &ddelta, &dz}) out->assign(rows * s.D, nan);
    for (auto* out : {&dB_step, &dC_step}) out->assign(rows * s.G * s.N * parts, nan);
    for (auto* out : {&dA, &dB_const, &dC_const}) out->assign(s.D * s.N * parts, r_nan);
    for (auto* out : {&dskip, &dbias}) out->assign(s.D, r_nan);
    for (auto* out : {&final_state, &dinitial}) out->assign(S * s.D * s.N * parts, r_nan);
  }

  kernels::SequenceLayout layout() const {
    kernels::SequenceLayout l;
    l.batch = shape.B;
    l.length = shape.L;
    l.sequences = shape.sequences();
    l.cu_seqlens = cu_seqlens.empty() ? nullptr : cu_seqlens.data();
    if (shape.mask) l.mask = {reinterpret_cast<const bool*>(mask.data()), shape.L, 1};
    l.reverse = shape.reverse;
    return l;
  }

  kernels::SelectiveScanForward<T> forward(int64_t threads = 2) {
    kernels::SelectiveScanForward<T> p;
    set_inputs(p, threads);
    p.y = {y.data(), shape.L * shape.D, shape.D, 1};
    p.final_state = final_state.data();
    border.assign(kernels::selective_scan_border_size(shape.sequences(), shape.L, !shape.cu_seqlens.empty(), shape.D,
                                                      shape.N, shape.G, shape.complex),
                  std::nan(""));
    p.border_states = border.data();
#ifdef ADDER_CUDA
    if (current_device() == Device::kCuda) {
      forward_workspace_.assign(kernels::cuda::selective_scan_forward_workspace_bytes(p) / sizeof(double) + 2,
                                std::nan(""));
      p.workspace = forward_workspace_.data();
    }
#endif
    return p;
  }

  // To be asked for after the forward pass has run.
  kernels::SelectiveScanBackward<T> backward(int64_t threads = 2) {
    kernels::SelectiveScanBackward<T> p;
    set_inputs(p, threads);
    const int64_t row = shape.G * shape.N * (shape.complex ? 2 : 1), n = row / shape.G;
    p.border_states = border.data();
    p.dy = wide(dy);
    p.dfinal_state = dfinal.data();
    p.du = {du.data(), shape.L * shape.D, shape.D, 1};
    p.ddelta = {ddelta.data(), shape.L * shape.D, shape.D, 1};
    if (shape.gate) p.dz = {dz.data(), shape.L * shape.D, shape.D, 1};
    if (!shape.B_const) p.dB_step = {dB_step.data(), shape.L * row, row, n, 1};
    if (!shape.C_const) p.dC_step = {dC_step.data(), shape.L * row, row, n, 1};
    p.dA = dA.data();
    if (shape.B_const) p.dB_const = dB_const.data();
    if (shape.C_const) p.dC_const = dC_const.data();
    if (shape.skip) p.dD = dskip.data();
    if (shape.bias) p.ddelta_bias = dbias.data();
    if (shape.initial) p.dinitial_state = dinitial.data();
    workspace_.assign(backward_workspace_bytes(p) / sizeof(double) + 16, std::nan(""));
    void* base = workspace_.data();
    size_t space = workspace_.size() * sizeof(double);
    p.workspace = std::align(64, space - 64, base, space);
    return p;
  }

  ScanShape shape;
  Buffer<T> u, delta, z, dy, B_step, C_step, y, du, ddelta, dz, dB_step, dC_step;
  Buffer<R> A, B_const, C_const, skip, bias, initial, dfinal, final_state, border;
  Buffer<R> dA, dB_const, dC_const, dskip, dbias, dinitial;
  Buffer<char> mask;
  Buffer<int64_t> cu_seqlens;

 private:
  template <typename Out, typename Through>
  Buffer<Out> values(int64_t count, double scale) {
    std::normal_distribution<double> normal;
    Buffer<Out> out(count);
    for (Out& x : out) {
      const auto narrow = kernels::to_float(
          kernels::from_float<Through>(static_cast<kernels::Accumulator<Through>>(scale * normal(random_))));
      x = kernels::from_float<Out>(static_cast<kernels::Accumulator<Out>>(narrow));
    }
    return out;
  }
  static T positive(T x) { return kernels::from_float<T>(std::fabs(kernels::to_float(x)) / 4); }

  kernels::View3<const T> wide(const Buffer<T>& data) const {
    const int64_t stride = shape.strided ? 2 : 1;
    return {data.data() + (shape.strided ? 1 : 0), shape.L * wide_, wide_, stride};
  }

  void set_inputs(kernels::SelectiveScanInputs<T>& p, int64_t threads) const {
    const ScanShape& s = shape;
    p.layout = layout();
    p.channels = s.D;
    p.state = s.N;
    p.groups = s.G;
    p.discretization = s.zoh ? kernels::Discretization::kZoh : kernels::Discretization::kEuler;
    p.complex = s.complex;
    p.delta_softplus = s.softplus;
    p.u = wide(u);
    p.delta = wide(delta);
    if (s.gate) p.z = wide(z);
    const int64_t n = s.N * (s.complex ? 2 : 1), row = s.before_B + s.G * n;
    p.A = {A.data(), s.N, 1};
    p.constant_B = s.B_const;
    p.constant_C = s.C_const;
    if (s.B_const)
      p.B_const = {B_const.data(), s.N, 1};
    else
      p.B_step = {B_step.data() + s.before_B, s.L * row, row, n, 1};
    if (s.C_const)
      p.C_const = {C_const.data(), s.N, 1};
    else
      p.C_step = {C_step.data() + s.before_B, s.L * row, row, n, 1};
    if (s.skip) p.D = {skip.data(), 1};
    if (s.bias) p.delta_bias = {bias.data(), 1};
    if (s.initial) p.initial_state = initial.data();
    p.threads = threads;
  }

  std::mt19937_64 random_;
  int64_t wide_;
  Buffer<double> workspace_, forward_workspace_;
};

template <typename T>
void run_forward(const kernels::SelectiveScanForward<T>& params) {
  run_kernel_on_device(params, kernels::cpu::selective_scan_forward<T>,
                       ADDER_ON_CUDA(kernels::cuda::selective_scan_forward(on_cuda, nullptr)));
}
template <typename T>
void run_backward(const kernels::SelectiveScanBackward<T>& params) {
  run_kernel_on_device(params, kernels::cpu::selective_scan_backward<T>,
                       ADDER_ON_CUDA(kernels::cuda::selective_scan_backward(on_cuda, nullptr)));
}

}  // namespace adder::tests
