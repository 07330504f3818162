#include <gtest/gtest.h>

#ifdef ADDER_CUDA
#include "adder/kernels/selective_scan_cuda.h"

// Which CUDA kernels a scan takes: functions of the shape, the options and the strides alone, that need no GPU.
namespace adder::tests {
namespace {

using kernels::cuda::choose_scan;
using kernels::cuda::scan_parts;
using kernels::cuda::ScanAlgorithm;
using Inputs = kernels::SelectiveScanInputs<float>;

Inputs shape(int64_t batch, int64_t length, int64_t channels, int64_t state = 16) {
  Inputs p;
  p.layout.batch = p.layout.sequences = batch;
  p.layout.length = length;
  p.channels = channels;
  p.state = state;
  return p;
}

TEST(ScanChoice, AFewStepsHaveTheirOwnKernels) {
  EXPECT_EQ(choose_scan(shape(2, 1, 64), false), ScanAlgorithm::kShort);
  EXPECT_EQ(choose_scan(shape(2, 15, 64), false), ScanAlgorithm::kShort);
  EXPECT_EQ(choose_scan(shape(2, 16, 64), false), ScanAlgorithm::kFast);
  EXPECT_EQ(choose_scan(shape(2, 8, 64), true), ScanAlgorithm::kShort);
  EXPECT_EQ(choose_scan(shape(2, 0, 64), false), ScanAlgorithm::kFast) << "no border states to write";
  Inputs packed = shape(1, 4, 64);
  const int64_t cu_seqlens[] = {0, 4};
  packed.layout.cu_seqlens = cu_seqlens;
  EXPECT_EQ(choose_scan(packed, false), ScanAlgorithm::kFast);
}

TEST(ScanChoice, EveryOptionHasAKernel) {
  EXPECT_EQ(choose_scan(shape(2, 100, 64, 8), false), ScanAlgorithm::kFast);
  EXPECT_EQ(choose_scan(shape(2, 100, 64, 12), false), ScanAlgorithm::kGeneric);
  const auto changed = [](auto change) {
    Inputs p = shape(2, 100, 64);
    change(p);
    return choose_scan(p, false);
  };
  EXPECT_EQ(changed([](Inputs& p) { p.complex = true; }), ScanAlgorithm::kGeneric);
  EXPECT_EQ(changed([](Inputs& p) { p.discretization = kernels::Discretization::kZoh; }), ScanAlgorithm::kGeneric);
  EXPECT_EQ(changed([](Inputs& p) { p.constant_B = true; }), ScanAlgorithm::kGeneric);
  EXPECT_EQ(changed([](Inputs& p) { p.constant_C = true; }), ScanAlgorithm::kGeneric);
  EXPECT_EQ(changed([](Inputs& p) { p.layout.length = int64_t{1} << 30; }), ScanAlgorithm::kGeneric);
  EXPECT_EQ(choose_scan(kernels::SelectiveScanInputs<double>(), false), ScanAlgorithm::kGeneric);
}

TEST(ScanChoice, LongSequencesAreCutWhereTheyAloneWouldNotFillTheDevice) {
  for (const bool backward : {false, true}) {
    EXPECT_EQ(scan_parts(shape(8, 2048, 2048), backward).count, 1) << "1,024 warps are enough";
    EXPECT_EQ(scan_parts(shape(1, 64, 64), backward).count, 1) << "too short";
    EXPECT_EQ(scan_parts(shape(0, 4096, 64), backward).count, 1);
    EXPECT_EQ(scan_parts(shape(1, 256, 64), backward).steps, 16);
    EXPECT_GT(scan_parts(shape(1, 65536, 2048), backward).count, 1);
  }
  // Two parts gain in the backward pass alone.
  EXPECT_EQ(scan_parts(shape(1, 4096, 8192), false).count, 1);
  EXPECT_GT(scan_parts(shape(1, 4096, 8192), true).count, 1);
}

TEST(ScanChoice, PartsCoverTheSequenceAndBeginWhereStatesAreSaved) {
  for (const int64_t channels : {16, 100, 2048, 5120})
    for (const int64_t length : {1, 96, 161, 255, 1000, 4097, 65536, 1 << 20})
      for (const bool backward : {false, true}) {
        SCOPED_TRACE(testing::Message() << channels << " channels, " << length << " steps, backward " << backward);
        const kernels::cuda::ScanParts parts = scan_parts(shape(1, length, channels), backward);
        EXPECT_GE(parts.count * parts.steps, length);
        EXPECT_LT((parts.count - 1) * parts.steps, length) << "an empty part";
        EXPECT_TRUE(parts.count == 1 || parts.steps % kernels::kCudaScanChunk == 0) << parts.steps;
        EXPECT_EQ(kernels::cuda::scan_parts_workspace_bytes(shape(1, length, channels), backward),
                  parts.count == 1 ? 0 : 3 * parts.count * channels * 16 * static_cast<int64_t>(sizeof(float)));
      }
}

}  // namespace
}  // namespace adder::tests
#endif
