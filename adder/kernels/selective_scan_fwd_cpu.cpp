#include "adder/kernels/selective_scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "adder/kernels/selective_scan_fwd_cpu.cpp"
#include "adder/kernels/targets.h"
#include "hwy/foreach_target.h"

#include "adder/kernels/selective_scan-inl.h"

HWY_BEFORE_NAMESPACE();
namespace adder::kernels {
namespace HWY_NAMESPACE {

// kN real states at once, their h in registers: y += C h along a chunk. Pointers are those of one vector of channels.
template <int kN, class D, typename R>
void scan_states(D d, int64_t steps, const R* delta, const R* du, const R* A, const R* B, const R* C, int64_t planes,
                 R* state, R* y) {
  using V = hn::Vec<D>;
  V a[kN], h[kN];
  HWY_UNROLL(16)
  for (int n = 0; n < kN; ++n) {
    a[n] = hn::Load(d, A + n * kUnit);
    h[n] = hn::Load(d, state + n * kUnit);
  }
  for (int64_t t = 0; t < steps; ++t) {
    const V step = hn::Load(d, delta + t * kUnit), x = hn::Load(d, du + t * kUnit);
    V sum = hn::Load(d, y + t * kUnit);
    HWY_UNROLL(16)
    for (int n = 0; n < kN; ++n) {
      h[n] = hn::MulAdd(exp2(d, hn::Mul(step, a[n])), h[n], hn::Mul(x, hn::Set(d, B[t * planes + n])));
      sum = hn::MulAdd(h[n], hn::Set(d, C[t * planes + n]), sum);
    }
    hn::Store(sum, d, y + t * kUnit);
  }
  HWY_UNROLL(16)
  for (int n = 0; n < kN; ++n) hn::Store(h[n], d, state + n * kUnit);
}

// Any one state. B and C are rows of planes (per step) or, where constant, null with the planes in B_const and C_const.
template <bool kComplex, bool kZoh, class D, typename R>
void scan_state(D d, int64_t steps, const R* delta, const R* du, const R* A, const R* B, const R* C, const R* B_const,
                const R* C_const, int64_t planes, int64_t n, R* state, R* y) {
  using V = hn::Vec<D>;
  using Num = Number<V, kComplex>;
  const Num a2 = load_number<kComplex>(d, A, n);
  Num h = load_number<kComplex>(d, state, n);
  for (int64_t t = 0; t < steps; ++t) {
    const V step = hn::Load(d, delta + t * kUnit), x = hn::Load(d, du + t * kUnit);
    Num b = B != nullptr ? broadcast_number<kComplex>(d, B + t * planes, n) : load_number<kComplex>(d, B_const, n);
    const Num c =
        C != nullptr ? broadcast_number<kComplex>(d, C + t * planes, n) : load_number<kComplex>(d, C_const, n);
    const Num x2 = scale(a2, step);
    const Num e = exponential<kComplex>(d, x2);
    if constexpr (kZoh) {
      Num phi, unused;
      zoh_factor<kComplex>(d, scale(x2, constant(d, kLn2)), e, phi, unused);
      b = multiply(b, phi);
    }
    h = multiply_add(e, h, scale(b, x));
    const V product = real_product(c, h);
    V sum = hn::Load(d, y + t * kUnit);
    sum = hn::Add(sum, kComplex ? hn::Add(product, product) : product);
    hn::Store(sum, d, y + t * kUnit);
  }
  store_number<kComplex>(d, h, state, n);
}

// One step of the real states of one channel, which lie side by side; the lanes of the result sum to C h.
template <class D, typename R>
HWY_INLINE hn::Vec<D> step_states(D d, int64_t states, R delta, R du, const R* A, const R* B, const R* C,
                                  const R* before, R* after) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto step = hn::Set(d, delta * R(kLog2E)), x = hn::Set(d, du);
  auto sum = hn::Zero(d);
  for (int64_t n = 0; n < states; n += lanes) {
    const auto row = [&](const R* from) { return load_row(d, from + n, 1, states - n); };
    const auto h = before != nullptr ? row(before) : hn::Zero(d);
    const auto next = hn::MulAdd(exp2(d, hn::Mul(step, row(A))), h, hn::Mul(x, row(B)));
    store_row(d, next, after + n, 1, states - n);
    sum = hn::MulAdd(next, row(C), sum);
  }
  return sum;
}

template <typename T>
struct Forward {
  using R = Accumulator<T>;
  const SelectiveScanForward<T>& p;
  const ScanPlan& plan;

  void chunk(const BlockChannels& block, const ScanTile<R>& tile, int64_t steps, const NextChunk& next, R* state,
             R* y) const {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    const bool zoh = p.discretization == Discretization::kZoh, plain = this->plain();
    const R* B = p.constant_B ? nullptr : tile.B;
    const R* C = p.constant_C ? nullptr : tile.C;
    for (int64_t c = 0; c < block.units * kUnit; c += lanes) {
      const int64_t row = c / kUnit * kScanChunk * kUnit + c % kUnit,
                    plane = c / kUnit * plan.planes * kUnit + c % kUnit;
      next.prefetch(c / lanes, c / lanes + 1, block.units * kUnit / lanes, p.u, p.delta, p.z);
      const R *delta = tile.delta + row, *du = tile.du + row, *A = tile.A + plane;
      int64_t n = 0;
      if (plain) {
        for (; n + 4 <= p.state; n += 4)
          scan_states<4>(d, steps, delta, du, A + n * kUnit, B + n, C + n, plan.planes, state + plane + n * kUnit,
                         y + row);
        for (; n < p.state; ++n)
          scan_states<1>(d, steps, delta, du, A + n * kUnit, B + n, C + n, plan.planes, state + plane + n * kUnit,
                         y + row);
      }
      for (; n < p.state; ++n) {
        const auto run = [&]<bool kComplex, bool kZoh>() {
          scan_state<kComplex, kZoh>(d, steps, delta, du, A, B, C, tile.B_const + plane, tile.C_const + plane,
                                     plan.planes, n, state + plane, y + row);
        };
        if (p.complex)
          zoh ? run.template operator()<true, true>() : run.template operator()<true, false>();
        else
          zoh ? run.template operator()<false, true>() : run.template operator()<false, false>();
      }
    }
  }

  void store_outputs(const BlockChannels& block, const ScanTile<R>& tile, const SequenceRows& rows, int64_t start,
                     int64_t steps, const R* y) const {
    const Tag<T> d;
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t j = 0; j < steps; ++j) {
      const int64_t t = rows.time(start + j);
      T* y_row = p.y.data + rows.b * p.y.b + t * p.y.l + block.first * p.y.d;
      const T* z_row = p.z.data != nullptr ? p.z.data + rows.b * p.z.b + t * p.z.l + block.first * p.z.d : nullptr;
      for (int64_t c = 0; c < block.count; c += lanes) {
        const int64_t at = (c / kUnit * kScanChunk + j) * kUnit + c % kUnit;
        auto v = hn::Zero(d);
        if (tile.valid[j]) {
          v = hn::MulAdd(hn::Load(d, tile.D + c), hn::Load(d, tile.u + at), hn::Load(d, y + at));
          if (z_row != nullptr) v = hn::Mul(v, silu(d, load_row(d, z_row + c * p.z.d, p.z.d, block.count - c)));
        }
        store_row(d, v, y_row + c * p.y.d, p.y.d, block.count - c);
      }
    }
  }

  bool plain() const {
    return !p.complex && p.discretization == Discretization::kEuler && !p.constant_B && !p.constant_C;
  }

  // A single step reads each state once as it lies: no turning of A and of the states into planes and back.
  bool single_step() const {
    return p.layout.length == 1 && p.layout.cu_seqlens == nullptr && p.border_states == nullptr && plain() &&
           p.A.column == 1;
  }

  void step(const BlockChannels& block, const ScanTile<R>& tile, int64_t s, R* y) const {
    const Tag<T> d;
    HWY_ALIGN R sums[kUnit * hn::MaxLanes(Tag<T>())];
    const auto lanes = static_cast<int64_t>(hn::Lanes(d));
    for (int64_t c = 0; c < block.units * kUnit; c += kUnit) {
      const int64_t at = c * kScanChunk, count = HWY_MIN(kUnit, block.count - c);
      std::memset(sums, 0, sizeof(sums));
      for (int64_t i = 0; i < count; ++i) {
        const int64_t channel = block.first + c + i, state = (s * p.channels + channel) * p.state;
        hn::Store(
            step_states(d, p.state, tile.delta[at + i], tile.du[at + i], p.A.data + channel * p.A.row, tile.B, tile.C,
                        p.initial_state != nullptr ? p.initial_state + state : nullptr, p.final_state + state),
            d, sums + i * lanes);
      }
      sum_lanes(d, sums, kUnit, y + at);
    }
  }

  void item(int64_t block_index, int64_t slab) const {
    const BlockChannels block(plan, block_index);
    const int64_t row = plan.block_units * kUnit, rows_of_state = plan.planes * row;
    const auto carve = [&](std::byte* base, R*& state, R*& y) {
      Carver<R> carver(base);
      ScanTile<R> tile(carver, plan, false);
      state = carver.take(rows_of_state);
      y = carver.take(kScanChunk * row);
      return std::pair(tile, carver.used());
    };
    R *state, *y;
    const size_t bytes = carve(nullptr, state, y).second;
    ScanTile<R> tile = carve(thread_scratch(bytes), state, y).first;
    tile.load_rows(p, block);
    if (!single_step()) tile.load_matrices(p, block);
    const SequenceLayout& layout = p.layout;
    const int64_t last = layout.sequences * (slab + 1) / plan.slabs;
    for (int64_t s = layout.sequences * slab / plan.slabs; s < last; ++s) {
      const SequenceRows rows(layout, s);
      if (single_step()) {
        tile.load(p, plan, block, rows, 0, 1);
        step(block, tile, s, y);
        store_outputs(block, tile, rows, 0, 1, y);
        continue;
      }
      const int64_t state_offset = s * p.channels * plan.planes;
      planes_from_state<R>(block, plan.planes, p.initial_state != nullptr ? p.initial_state + state_offset : nullptr,
                           state);
      for (int64_t start = 0; start < rows.length; start += kScanChunk) {
        const int64_t steps = HWY_MIN(kScanChunk, rows.length - start);
        if (p.border_states != nullptr) {
          const int64_t chunk_index = plan.chunk_offset[s] + start / kScanChunk;
          std::memcpy(p.border_states + (chunk_index * plan.units + block.first_unit) * plan.planes * kUnit, state,
                      sizeof(R) * block.units * plan.planes * kUnit);
        }
        tile.load(p, plan, block, rows, start, steps);
        std::memset(y, 0, sizeof(R) * kScanChunk * row);
        const int64_t end = start + steps;
        chunk(block, tile, steps, {block, rows, end, HWY_MIN(kScanChunk, rows.length - end)}, state, y);
        store_outputs(block, tile, rows, start, steps, y);
      }
      matrix_from_planes<R>(block, plan.planes, state, p.final_state + state_offset);
    }
  }
};

template <typename T>
void scan_forward(const SelectiveScanForward<T>& p) {
  const ScanPlan plan(p.layout, p.channels, p.state, p.groups, p.complex);
  const Forward<T> forward{p, plan};
  parallel_items(plan.blocks * plan.slabs, plan.useful_threads(p.layout, p.threads),
                 [&](int64_t i, int64_t) { forward.item(i % plan.blocks, i / plan.blocks); });
}

void scan_forward_f32(const SelectiveScanForward<float>& p) {
  scan_forward(p);
}
void scan_forward_f64(const SelectiveScanForward<double>& p) {
  scan_forward(p);
}
void scan_forward_bf16(const SelectiveScanForward<bfloat16>& p) {
  scan_forward(p);
}
void scan_forward_f16(const SelectiveScanForward<float16>& p) {
  scan_forward(p);
}

}  // namespace HWY_NAMESPACE
}  // namespace adder::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace adder::kernels {

HWY_EXPORT(scan_forward_f32);
HWY_EXPORT(scan_forward_f64);
HWY_EXPORT(scan_forward_bf16);
HWY_EXPORT(scan_forward_f16);

namespace cpu {
template <>
void selective_scan_forward(const SelectiveScanForward<float>& p) {
  HWY_DYNAMIC_DISPATCH(scan_forward_f32)(p);
}
template <>
void selective_scan_forward(const SelectiveScanForward<double>& p) {
  HWY_DYNAMIC_DISPATCH(scan_forward_f64)(p);
}
template <>
void selective_scan_forward(const SelectiveScanForward<bfloat16>& p) {
  HWY_DYNAMIC_DISPATCH(scan_forward_bf16)(p);
}
template <>
void selective_scan_forward(const SelectiveScanForward<float16>& p) {
  HWY_DYNAMIC_DISPATCH(scan_forward_f16)(p);
}
}  // namespace cpu
}  // namespace adder::kernels
#endif
