#include "adder/kernels/selective_scan_fast_bwd.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kWarps = 4;

struct Plan {
  ScanParts parts;
  void* borders;
  BackwardSums sums;
  size_t bytes;

  template <typename T>
  Plan(const SelectiveScanInputs<T>& p, void* workspace) : Plan(p, Carver<float>(static_cast<std::byte*>(workspace))) {}

 private:
  template <typename T>
  Plan(const SelectiveScanInputs<T>& p, Carver<float> carver)
      : parts(scan_parts(p, true)),
        borders(carver.take(scan_parts_workspace_bytes(p, true) / static_cast<int64_t>(sizeof(float)))),
        sums(p, kWarps * BackwardTiles<T, 16, kWarps>::kChannels, parts.count * p.layout.sequences, carver),
        bytes(carver.used()) {
    parts.begins = static_cast<const float*>(borders);
  }
};

template <typename T>
int piece_of(const SelectiveScanBackward<T>& p) {
  const auto outputs = [](const View3<T>& v) {
    return v.d == 1 && reinterpret_cast<uintptr_t>(v.data) % 8 == 0 && v.b % 2 == 0 && v.l % 2 == 0 && is_near<T>(v.l);
  };
  return rows_are_plain(p.dy) && outputs(p.du) && outputs(p.ddelta) && (p.dz.data == nullptr || outputs(p.dz))
             ? plain_piece(p)
             : 0;
}

template <typename T, int N, bool kGate, int kPiece>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  using Tiles = BackwardTiles<T, N, kWarps>;
  const auto kernel = fast_backward<T, N, kGate, kPiece, kWarps, 2>;
  constexpr int kShared = static_cast<int>(sizeof(Tiles));
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "selective_scan, backward");
  const int64_t bytes = (p.layout.reverse ? -1 : 1) * Tiles::kSteps * static_cast<int64_t>(sizeof(T));
  const auto stride = [&](int64_t l) { return kPiece > 0 ? static_cast<int>(bytes * l) : 0; };
  const BackwardStrides strides{
      {stride(p.u.l), stride(p.delta.l), stride(p.z.l), stride(p.B_step.l), stride(p.C_step.l), 0},
      stride(p.dy.l),
      stride(p.du.l),
      stride(p.ddelta.l),
      stride(p.dz.l)};
  const auto blocks = static_cast<unsigned>(plan.sums.blocks * p.layout.sequences * plan.parts.count);
  kernel<<<blocks, 32 * kWarps, kShared, stream>>>(p, strides, plan.sums, plan.parts);
  check_launch("selective_scan, fast backward");
}

template <typename T, int N>
void launch(const SelectiveScanBackward<T>& p, const Plan& plan, CudaStream stream) {
  with_gate_and_piece(p.z.data != nullptr, piece_of(p),
                      [&]<bool kGate, int kPiece>() { launch<T, N, kGate, kPiece>(p, plan, stream); });
}

}  // namespace

template <typename T>
bool selective_scan_backward_fast_fits(const SelectiveScanInputs<T>& p) {
  const size_t bytes = p.state == 8 ? sizeof(BackwardTiles<T, 8, kWarps>) : sizeof(BackwardTiles<T, 16, kWarps>);
  return static_cast<int>(bytes) <= shared_memory_limit();
}

template <typename T>
int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>& p) {
  return static_cast<int64_t>(Plan(p, nullptr).bytes);
}

template <typename T>
void selective_scan_backward_fast(const SelectiveScanBackward<T>& p, CudaStream stream) {
  const Plan plan(p, p.workspace);
  if (plan.parts.count > 1) find_part_gradients(p, plan.parts, plan.borders, stream);
  if (plan.sums.blocks * p.layout.sequences > 0)
    p.state == 8 ? launch<T, 8>(p, plan, stream) : launch<T, 16>(p, plan, stream);
  add_backward_sums(p, plan.sums, stream);
}

#define ADDER_INSTANTIATE(T)                                                                    \
  template bool selective_scan_backward_fast_fits(const SelectiveScanInputs<T>&);               \
  template int64_t selective_scan_backward_fast_workspace_bytes(const SelectiveScanInputs<T>&); \
  template void selective_scan_backward_fast(const SelectiveScanBackward<T>&, CudaStream);
ADDER_INSTANTIATE(float)
ADDER_INSTANTIATE(bfloat16)
ADDER_INSTANTIATE(float16)

}  // namespace adder::kernels::cuda
