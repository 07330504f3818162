#include "adder/kernels/selective_scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/selective_scan_bwd_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/selective_scan_bwd-inl.h"

#ifndef ADDER_KERNELS_SELECTIVE_SCAN_BWD_WORKSPACE_
#define ADDER_KERNELS_SELECTIVE_SCAN_BWD_WORKSPACE_
namespace adder::kernels {

// Partial sums: of dB and dC for each block of a group, of all other sums for each slab of sequences.
template <typename R>
struct ScanBackwardWorkspace {
  R *dB, *dC;                   // (group_blocks, B, L, G, planes)
  R *dA, *dB_const, *dC_const;  // (slabs, units, planes, kUnit)
  R *dD, *ddelta_bias;          // (slabs, units, kUnit)
  size_t bytes;

  template <typename T>
  ScanBackwardWorkspace(std::byte* base, const SelectiveScanInputs<T>& p, const ScanPlan& plan) {
    Carver<R> carver(base);
    const int64_t steps = plan.group_blocks * p.layout.batch * p.layout.length * p.groups * plan.planes;
    const int64_t row = plan.slabs * plan.units * ScanPlan::kUnit, matrix = row * plan.planes;
    dB = carver.take(p.constant_B ? 0 : steps);
    dC = carver.take(p.constant_C ? 0 : steps);
    dA = carver.take(matrix);
    dB_const = carver.take(matrix);
    dC_const = carver.take(matrix);
    dD = carver.take(row);
    ddelta_bias = carver.take(row);
    bytes = carver.used();
  }
};

}  // namespace adder::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

template <typename R>
struct BackwardTile {
  R *dy, *s, *q, *y;                    // (unit, step, lane)
  R* dz;                                // the same; what y is multiplied by
  R *carry, *dA, *dB_const, *dC_const;  // planes of each unit
  R *dD, *ddelta_bias;                  // a row of block channels
  R *a, *h, *dB, *dC;                   // (step, states at once, lane); h has a step more

  BackwardTile(Carver<R>& carver, const ScanPlan& plan) {
    const int64_t row = plan.block_units * kUnit, slots = kScanChunk * kStatesAtOnce * kUnit;
    for (R** tile : {&dy, &s, &q, &y, &dz}) *tile = carver.take(kScanChunk * row);
    for (R** planes : {&carry, &dA, &dB_const, &dC_const}) *planes = carver.take(plan.planes * row);
    for (R** channels : {&dD, &ddelta_bias}) *channels = carver.take(row);
    for (R** slot : {&a, &dB, &dC}) *slot = carver.take(slots);
    h = carver.take(slots + kStatesAtOnce * kUnit);
  }
};

template <typename T>
struct Backward {
  using R = Accumulator<T>;
  const SelectiveScanBackward<T>& p;
  const ScanPlan& plan;
  const ScanBackwardWorkspace<R>& work;

  // dy, times silu(z) where there is a gate, and then dz is dy silu'(z); s, q and y start at 0.
  void load_gradients(const BlockChannels& block, const ScanTile<R>& tile, BackwardTile<R>& grad,
                      const SequenceRows& rows, int64_t start, int64_t steps) const {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const size_t bytes = sizeof(R) * kScanChunk * block.units * kUnit;
    std::memset(grad.s, 0, bytes);
    std::memset(grad.q, 0, bytes);
    std::memset(grad.y, 0, bytes);
    for (int64_t j = 0; j < steps; ++j) {
      const int64_t t = rows.time(start + j);
      const T* dy_row = p.dy.data + rows.b * p.dy.b + t * p.dy.l + block.first * p.dy.d;
      const T* z_row = p.z.data != nullptr ? p.z.data + rows.b * p.z.b + t * p.z.l + block.first * p.z.d : nullptr;
      for (int64_t c = 0; c < block.units * kUnit; c += lanes) {
        const int64_t at = (c / kUnit * kScanChunk + j) * kUnit + c % kUnit;
        auto dy = hn::Zero(d);
        if (tile.valid[j] && c < block.count) {
          dy = load_row(d, dy_row + c * p.dy.d, p.dy.d, block.count - c);
          if (z_row != nullptr) {
            const auto z = load_row(d, z_row + c * p.z.d, p.z.d, block.count - c), gate = sigmoid(d, z);
            hn::Store(hn::Mul(dy, silu_gradient_from(d, z, gate)), d, grad.dz + at);
            dy = hn::Mul(dy, hn::Mul(z, gate));
          }
        }
        hn::Store(dy, d, grad.dy + at);
      }
    }
  }

  // The lanes of dB and dC of states [n, n + count) summed into this block's partial rows.
  void store_step_sums(const BlockChannels& block, int64_t block_in_group, const BackwardTile<R>& grad,
                       const SequenceRows& rows, int64_t start, int64_t steps, int64_t plane, int64_t count) const {
    const Tag<T> d;
    const int64_t slot = count * static_cast<int64_t>(hn::Lanes(d));
    for (int64_t j = 0; j < steps; ++j) {
      const int64_t row = (block_in_group * p.layout.batch + rows.b) * p.layout.length + rows.time(start + j);
      const int64_t at = (row * p.groups + block.group) * plan.planes + plane;
      if (!p.constant_B) sum_lanes(d, grad.dB + j * slot, count, work.dB + at);
      if (!p.constant_C) sum_lanes(d, grad.dC + j * slot, count, work.dC + at);
    }
  }

  void chunk(const BlockChannels& block, int64_t block_in_group, const ScanTile<R>& tile, BackwardTile<R>& grad,
             const SequenceRows& rows, int64_t start, int64_t steps, const NextChunk& next, const R* border) const {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const bool zoh = p.discretization == Discretization::kZoh;
    const bool plain = !p.complex && !zoh && !p.constant_B && !p.constant_C;
    const int64_t parts = p.complex ? 2 : 1, columns = block.units * kUnit / lanes;
    for (int64_t n = 0; n < p.state;) {
      const int64_t count = plain && n + kStatesAtOnce <= p.state ? kStatesAtOnce : 1;
      for (int64_t c = 0; c < block.units * kUnit; c += lanes) {
        const int64_t part = n * columns + c / lanes * count;
        next.prefetch(part, part + count, p.state * columns, p.u, p.delta, p.z, p.dy);
        const int64_t row = c / kUnit * kScanChunk * kUnit + c % kUnit,
                      plane = c / kUnit * plan.planes * kUnit + c % kUnit;
        const ScanColumn<R> column{steps,
                                   plan.planes,
                                   tile.delta + row,
                                   tile.du + row,
                                   grad.dy + row,
                                   tile.A + plane,
                                   tile.B_const + plane,
                                   tile.C_const + plane,
                                   p.constant_B ? nullptr : tile.B,
                                   p.constant_C ? nullptr : tile.C,
                                   border + plane,
                                   grad.s + row,
                                   grad.q + row,
                                   grad.y + row,
                                   grad.carry + plane,
                                   grad.dA + plane,
                                   grad.dB_const + plane,
                                   grad.dC_const + plane,
                                   grad.a,
                                   grad.h,
                                   grad.dB,
                                   grad.dC,
                                   c == 0};
        if (count == kStatesAtOnce)
          c == 0 ? scan_states_backward<kStatesAtOnce, true>(d, column, n)
                 : scan_states_backward<kStatesAtOnce, false>(d, column, n);
        else if (plain)
          c == 0 ? scan_states_backward<1, true>(d, column, n) : scan_states_backward<1, false>(d, column, n);
        else if (p.complex)
          zoh ? scan_state_backward<true, true>(d, column, n) : scan_state_backward<true, false>(d, column, n);
        else
          zoh ? scan_state_backward<false, true>(d, column, n) : scan_state_backward<false, false>(d, column, n);
      }
      store_step_sums(block, block_in_group, grad, rows, start, steps, n * parts, count * parts);
      n += count;
    }
  }

  void store_outputs(const BlockChannels& block, const ScanTile<R>& tile, BackwardTile<R>& grad,
                     const SequenceRows& rows, int64_t start, int64_t steps) const {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t j = 0; j < steps; ++j) {
      const int64_t t = rows.time(start + j);
      const auto row_of = [&](const auto& view) {
        return view.data + rows.b * view.b + t * view.l + block.first * view.d;
      };
      for (int64_t c = 0; c < block.count; c += lanes) {
        const int64_t at = (c / kUnit * kScanChunk + j) * kUnit + c % kUnit, left = block.count - c;
        const auto D = hn::Load(d, tile.D + c), u = hn::Load(d, tile.u + at), delta = hn::Load(d, tile.delta + at);
        const auto dy = hn::Load(d, grad.dy + at), s = hn::Load(d, grad.s + at), q = hn::Load(d, grad.q + at);
        auto du = hn::Zero(d), ddelta = hn::Zero(d), dz = hn::Zero(d);
        if (tile.valid[j]) {
          du = hn::MulAdd(D, dy, hn::Mul(s, delta));
          ddelta = hn::Mul(hn::MulAdd(q, constant(d, kLn2), hn::Mul(s, u)), hn::Load(d, tile.slope + at));
          if (p.z.data != nullptr) dz = hn::Mul(hn::Load(d, grad.dz + at), hn::MulAdd(D, u, hn::Load(d, grad.y + at)));
          hn::Store(hn::MulAdd(dy, u, hn::Load(d, grad.dD + c)), d, grad.dD + c);
          hn::Store(hn::Add(ddelta, hn::Load(d, grad.ddelta_bias + c)), d, grad.ddelta_bias + c);
        }
        store_row(d, du, row_of(p.du) + c * p.du.d, p.du.d, left);
        store_row(d, ddelta, row_of(p.ddelta) + c * p.ddelta.d, p.ddelta.d, left);
        if (p.z.data != nullptr) store_row(d, dz, row_of(p.dz) + c * p.dz.d, p.dz.d, left);
      }
    }
  }

  void item(int64_t block_index, int64_t slab) const {
    const BlockChannels block(plan, block_index);
    const int64_t block_in_group = block_index % plan.group_blocks, matrix = block.units * plan.planes * kUnit;
    const auto carve = [&](std::byte* base) {
      Carver<R> carver(base);
      ScanTile<R> tile(carver, plan, true);
      BackwardTile<R> grad(carver, plan);
      return std::tuple(tile, grad, carver.used());
    };
    auto [tile, grad, bytes] = carve(thread_scratch(std::get<2>(carve(nullptr))));
    tile.load_matrices(p, block);
    tile.load_rows(p, block);
    for (R* planes : {grad.dA, grad.dB_const, grad.dC_const}) std::memset(planes, 0, sizeof(R) * matrix);
    for (R* row : {grad.dD, grad.ddelta_bias}) std::memset(row, 0, sizeof(R) * block.units * kUnit);
    const SequenceLayout& layout = p.layout;
    const int64_t last = layout.sequences * (slab + 1) / plan.slabs;
    for (int64_t s = layout.sequences * slab / plan.slabs; s < last; ++s) {
      const SequenceRows rows(layout, s);
      const int64_t state_offset = s * p.channels * plan.planes;
      planes_from_state<R>(block, plan.planes, p.dfinal_state != nullptr ? p.dfinal_state + state_offset : nullptr,
                           grad.carry);
      const int64_t chunks = (rows.length + kScanChunk - 1) / kScanChunk;
      for (int64_t k = chunks - 1; k >= 0; --k) {
        const int64_t start = k * kScanChunk, steps = HWY_MIN(kScanChunk, rows.length - start);
        tile.load(p, plan, block, rows, start, steps);
        load_gradients(block, tile, grad, rows, start, steps);
        const R* border =
            p.border_states + ((plan.chunk_offset[s] + k) * plan.units + block.first_unit) * plan.planes * kUnit;
        const NextChunk next{block, rows, start - kScanChunk, k > 0 ? kScanChunk : 0};
        chunk(block, block_in_group, tile, grad, rows, start, steps, next, border);
        store_outputs(block, tile, grad, rows, start, steps);
      }
      if (p.dinitial_state != nullptr)
        matrix_from_planes<R>(block, plan.planes, grad.carry, p.dinitial_state + state_offset);
    }
    const int64_t unit = slab * plan.units + block.first_unit;
    std::memcpy(work.dA + unit * plan.planes * kUnit, grad.dA, sizeof(R) * matrix);
    std::memcpy(work.dB_const + unit * plan.planes * kUnit, grad.dB_const, sizeof(R) * matrix);
    std::memcpy(work.dC_const + unit * plan.planes * kUnit, grad.dC_const, sizeof(R) * matrix);
    std::memcpy(work.dD + unit * kUnit, grad.dD, sizeof(R) * block.units * kUnit);
    std::memcpy(work.ddelta_bias + unit * kUnit, grad.ddelta_bias, sizeof(R) * block.units * kUnit);
  }

  // The slabs' sums, in order, of one block of channels.
  void finish_block(int64_t block_index) const {
    const BlockChannels block(plan, block_index);
    const auto finish = [&](const R* partial, int64_t rows, R* to) {
      if (to == nullptr) return;
      const int64_t size = plan.units * rows * kUnit;
      const R* from = partial + block.first_unit * rows * kUnit;
      for (int64_t c = 0; c < block.count; ++c)
        for (int64_t row = 0; row < rows; ++row) {
          R sum = 0;
          for (int64_t slab = 0; slab < plan.slabs; ++slab)
            sum += from[slab * size + (c / kUnit * rows + row) * kUnit + c % kUnit];
          to[(block.first + c) * rows + row] = sum;
        }
    };
    finish(work.dA, plan.planes, p.dA);
    finish(work.dB_const, plan.planes, p.dB_const);
    finish(work.dC_const, plan.planes, p.dC_const);
    finish(work.dD, 1, p.dD);
    finish(work.ddelta_bias, 1, p.ddelta_bias);
  }

  // The blocks' sums of dB or dC, in order, for rows [first, last) of (B L G).
  void finish_steps(const R* partial, const View4<T>& to, int64_t first, int64_t last) const {
    const int64_t stride = p.layout.batch * p.layout.length * p.groups * plan.planes;
    for (int64_t row = first; row < last; ++row) {
      const int64_t g = row % p.groups, t = row / p.groups % p.layout.length, b = row / p.groups / p.layout.length;
      for (int64_t n = 0; n < plan.planes; ++n) {
        R sum = 0;
        for (int64_t k = 0; k < plan.group_blocks; ++k) sum += partial[k * stride + row * plan.planes + n];
        to.data[b * to.b + t * to.l + g * to.g + n * to.n] = from_float<T>(sum);
      }
    }
  }

  void run() const {
    const int64_t threads = plan.useful_threads(p.layout, p.threads);
    parallel_items(plan.blocks * plan.slabs, threads,
                   [&](int64_t i, int64_t) { item(i % plan.blocks, i / plan.blocks); });
    parallel_items(plan.blocks, threads, [&](int64_t i, int64_t) { finish_block(i); });
    const int64_t rows = p.layout.batch * p.layout.length * p.groups, piece = 256;
    parallel_items((rows + piece - 1) / piece, threads, [&](int64_t i, int64_t) {
      const int64_t first = i * piece, last = HWY_MIN(rows, first + piece);
      if (!p.constant_B) finish_steps(work.dB, p.dB_step, first, last);
      if (!p.constant_C) finish_steps(work.dC, p.dC_step, first, last);
    });
  }
};

template <typename T>
void scan_backward(const SelectiveScanBackward<T>& p) {
  const ScanPlan plan(p.layout, p.channels, p.state, p.groups, p.complex);
  const ScanBackwardWorkspace<Accumulator<T>> work(static_cast<std::byte*>(p.workspace), p, plan);
  Backward<T>{p, plan, work}.run();
}

void scan_backward_f32(const SelectiveScanBackward<float>& p) {
  scan_backward(p);
}
void scan_backward_f64(const SelectiveScanBackward<double>& p) {
  scan_backward(p);
}
void scan_backward_bf16(const SelectiveScanBackward<bfloat16>& p) {
  scan_backward(p);
}
void scan_backward_f16(const SelectiveScanBackward<float16>& p) {
  scan_backward(p);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(scan_backward_f32);
HWY_EXPORT(scan_backward_f64);
HWY_EXPORT(scan_backward_bf16);
HWY_EXPORT(scan_backward_f16);

namespace cpu {
template <typename T>
int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<T>& p) {
  const ScanPlan plan(p.layout, p.channels, p.state, p.groups, p.complex);
  return static_cast<int64_t>(ScanBackwardWorkspace<Accumulator<T>>(nullptr, p, plan).bytes);
}
template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<float>&);
template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<double>&);
template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<bfloat16>&);
template int64_t selective_scan_backward_workspace_bytes(const SelectiveScanInputs<float16>&);

template <>
void selective_scan_backward(const SelectiveScanBackward<float>& p) {
  HWY_DYNAMIC_DISPATCH(scan_backward_f32)(p);
}
template <>
void selective_scan_backward(const SelectiveScanBackward<double>& p) {
  HWY_DYNAMIC_DISPATCH(scan_backward_f64)(p);
}
template <>
void selective_scan_backward(const SelectiveScanBackward<bfloat16>& p) {
  HWY_DYNAMIC_DISPATCH(scan_backward_bf16)(p);
}
template <>
void selective_scan_backward(const SelectiveScanBackward<float16>& p) {
  HWY_DYNAMIC_DISPATCH(scan_backward_f16)(p);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
