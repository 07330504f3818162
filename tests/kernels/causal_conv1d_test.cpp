#include <sys/mman.h>

#include <cstring>
#include <functional>

#include "tests/kernels/conv_problem.h"
#include "tests/kernels/every_target.h"

namespace adder::tests {
namespace {

TEST(CausalConv1d, LengthsAndWidths) {
  for_each_device([&] {
    for (const int64_t length : {0, 1, 2, 3, 63, 64, 65, 129})
      for (const int64_t width : {1, 2, 3, 4, 5, 6, 9}) compare_all({.name = "base", .length = length, .width = width});
    for (const int64_t length : {127, 128, 2047, 2048, 2049})
      for (const int64_t width : {2, 4})
        compare_all({.name = "few channels", .length = length, .channels = 3, .width = width});
  });
}

TEST(CausalConv1d, OneThingChanged) {
  for_each_device([&] {
    compare_all({.name = "no activation", .silu = false});
    compare_all({.name = "no bias", .bias = false});
    compare_all({.name = "no window", .window = false});
    compare_all({.name = "no window, wide", .width = 9, .window = false});
    compare_all({.name = "reverse", .reverse = true});
    compare_all({.name = "one row", .batch = 1});
    compare_all({.name = "many rows", .batch = 200, .length = 1});
    compare_all({.name = "beyond 65535 rows", .batch = 65537, .length = 2, .channels = 3});
    compare_all({.name = "no rows", .batch = 0});
    compare_all({.name = "no channels", .channels = 0});
    compare_all({.name = "several blocks", .channels = 1529});
    compare_all({.name = "whole vectors", .channels = 64});
    compare_all({.name = "several pieces", .batch = 1, .length = 2049});
    compare_all({.name = "several slabs", .batch = 3, .length = 2049, .channels = 5, .width = 5});
    compare_all({.name = "more slabs", .batch = 5, .length = 4097, .channels = 2});
    compare_all({.name = "wider than a chunk", .length = 40, .width = 37});
    compare_all({.name = "wider than the sequence", .length = 5, .width = 37, .reverse = true});
    compare_all({.name = "wider than a piece", .length = 700, .channels = 3, .width = 130});
  });
}

TEST(CausalConv1d, Masked) {
  for_each_device([&] {
    for (const int64_t width : {1, 2, 4, 6}) {
      compare_all({.name = "mask", .width = width, .mask = true});
      compare_all({.name = "short", .length = 3, .width = width, .mask = true});
      compare_all({.name = "pieces", .batch = 1, .length = 2049, .channels = 3, .width = width, .mask = true});
      compare_all({.name = "reverse", .width = width, .mask = true, .reverse = true});
      compare_all(
          {.name = "packed", .batch = 1, .width = width, .mask = true, .cu_seqlens = {0, 0, 1, 5, 5, 40, 65, 65}});
    }
  });
}

TEST(CausalConv1d, Packed) {
  for_each_device([&] {
    for (const bool reverse : {false, true})
      for (const int64_t width : {1, 3, 4, 7}) {
        const ConvShape row{.name = "packed",
                            .batch = 1,
                            .width = width,
                            .reverse = reverse,
                            .cu_seqlens = {0, 0, 1, 3, 3, 40, 64, 65}};
        compare_all(row);
        ConvShape none = row;
        none.length = 0;
        none.cu_seqlens = {0, 0, 0};
        compare_all(none);
        none.cu_seqlens = {0};  // no sequence at all
        compare_all(none);
      }
  });
}

// Channels that are a multiple of 16 bytes: the GPU has kernels of their own for them, in runs of up to 128 steps.
TEST(CausalConv1d, WholeVectors) {
  for_each_device([&] {
    for (const int64_t width : {2, 3, 4}) {
      for (const int64_t length : {1, 2, 3, 4, 31, 32, 33, 63, 64, 65, 67, 127, 128, 129, 300})
        compare_all({.name = "lengths", .length = length, .channels = 24, .width = width});
      compare_all({.name = "reverse", .length = 200, .channels = 24, .width = width, .reverse = true});
      compare_all({.name = "no window", .length = 200, .channels = 24, .width = width, .window = false});
      compare_all({.name = "nothing", .length = 70, .channels = 8, .width = width, .silu = false, .bias = false});
      for (const bool reverse : {false, true})
        compare_all({.name = "packed",
                     .batch = 1,
                     .length = 600,
                     .channels = 40,
                     .width = width,
                     .reverse = reverse,
                     .cu_seqlens = {0, 0, 1, 3, 67, 130, 131, 259, 300, 300, 600, 600}});
    }
  });
}

TEST(CausalConv1d, Strides) {
  for_each_device([&] {
    for (const ConvLayout layout : {ConvLayout::kPadded, ConvLayout::kTransposed, ConvLayout::kBackwards,
                                    ConvLayout::kBroadcastBatch, ConvLayout::kBroadcastChannel})
      for (const bool mask : {false, true})
        compare_all({.name = "layout " + std::to_string(static_cast<int>(layout)), .mask = mask, .layout = layout});
  });
}

TEST(CausalConv1d, MaskedRunsLongerThanPieces) {
  for_each_device([&] {
    ConvShape row{.name = "long masks", .batch = 1, .length = 1500, .channels = 3, .mask = true};
    ConvInputs<float> inputs(row);
    const auto masked_between = [](int64_t first, int64_t last) {
      return [=](int64_t t) { return t < first || t >= last; };
    };
    const std::vector<std::function<bool(int64_t)>> masks = {masked_between(0, 700), masked_between(400, 1500),
                                                             masked_between(3, 1497), masked_between(0, 1500),
                                                             [](int64_t t) { return t % 100 == 7; }};
    for (const auto& mask : masks) {
      for (int64_t t = 0; t < row.length; ++t) inputs.mask[t] = mask(t);
      for (float& x : inputs.x.data) x = std::isnan(x) ? 1 : x;
      for (float& dy : inputs.dy.data) dy = std::isnan(dy) ? 1 : dy;
      ConvInputs<double> wide(row);
      wide.x.data.assign(inputs.x.data.begin(), inputs.x.data.end());
      wide.dy.data.assign(inputs.dy.data.begin(), inputs.dy.data.end());
      wide.mask = inputs.mask;
      const ConvResults got = run_kernel(row, inputs);
      const ConvResults expected =
          run(row, wide, kernels::ref::causal_conv1d_forward, kernels::ref::causal_conv1d_backward, 0);
      expect_near<float>(got, expected);
    }
  });
}

// Every instruction set that this processor has.
TEST(CausalConv1d, InstructionSets) {
  on_every_target([] {
    for (const int64_t width : {2, 3, 4, 6})
      for (const ConvShape& row : {ConvShape{.name = "silu", .width = width, .mask = true},
                                   ConvShape{.name = "none", .width = width, .silu = false}}) {
        compare<float>(row);
        compare<double>(row);
        compare<kernels::bfloat16>(row);
        compare<kernels::float16>(row);
      }
  });
}

void expect_same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(double)), 0);
}

TEST(CausalConv1d, SameBitsOnEveryRunAndForAnyThreads) {
  for_each_device([&] {
    for (ConvShape row :
         {ConvShape{.name = "rows", .batch = 3, .length = 700, .channels = 1529, .mask = true},
          ConvShape{
              .name = "packed", .batch = 1, .length = 900, .channels = 300, .cu_seqlens = {0, 10, 10, 500, 900}}}) {
      row.threads = 1;
      const ConvResults once = run_kernel(row, ConvInputs<float>(row));
      for (const int64_t threads : {1, 2, 3}) {
        row.threads = threads;
        const ConvResults again = run_kernel(row, ConvInputs<float>(row));
        expect_same_bits(once.y, again.y);
        expect_same_bits(once.final_window, again.final_window);
        expect_same_bits(once.dx, again.dx);
        expect_same_bits(once.dweight, again.dweight);
        expect_same_bits(once.dbias, again.dbias);
        expect_same_bits(once.dinitial_window, again.dinitial_window);
      }
    }
  });
}

TEST(CausalConv1d, MoreChannelsThanSixteenBitsCount) {
  for_each_device([&] {
    const ConvShape row{.name = "wide", .batch = 1, .length = 3, .channels = 65539};
    compare<float>(row);
  });
}

// Rows more than 2^31 elements apart, of which the system keeps only the pages touched.
TEST(CausalConv1d, OffsetsOfSixtyFourBits) {
  const ConvShape row{.name = "far", .batch = 1, .length = 3, .channels = 5};
  const int64_t stride = (int64_t{1} << 31) + 5;
  const size_t bytes = static_cast<size_t>(2 * stride + row.channels) * sizeof(kernels::bfloat16);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no address space of " << bytes << " bytes";
  ConvInputs<kernels::bfloat16> inputs(row);
  const ConvResults expected = run_kernel(row, inputs);
  const kernels::View3<kernels::bfloat16> near = inputs.x.view,
                                          far{static_cast<kernels::bfloat16*>(memory), 0, stride, 1};
  for (int64_t t = 0; t < row.length; ++t)
    for (int64_t d = 0; d < row.channels; ++d) far.data[t * far.l + d] = near.data[t * near.l + d];
  inputs.x.view = far;
  const ConvResults got = run_kernel(row, inputs);
  expect_same_bits(got.y, expected.y);
  expect_same_bits(got.dx, expected.dx);
  expect_same_bits(got.dweight, expected.dweight);
  munmap(memory, bytes);
}

// NaN and infinities come out where the formula puts them, and nowhere else.
TEST(CausalConv1d, NotFinite) {
  for_each_device([&] {
    const ConvShape row{.name = "nan", .batch = 1, .length = 40, .channels = 3};
    ConvInputs<float> inputs(row);
    inputs.x.at(0, 10, 1) = std::numeric_limits<float>::quiet_NaN();
    inputs.x.at(0, 20, 2) = std::numeric_limits<float>::infinity();
    const ConvResults got = run_kernel(row, inputs);
    for (int64_t t = 0; t < row.length; ++t) {
      EXPECT_EQ(std::isnan(got.y[t * 3 + 1]), t >= 10 && t < 14) << t;
      EXPECT_EQ(std::isnan(got.dx[t * 3 + 1]), t >= 7 && t < 14) << t;
      EXPECT_TRUE(std::isfinite(got.y[t * 3])) << t;
      EXPECT_TRUE(std::isfinite(got.y[t * 3 + 2]) || (t >= 20 && t < 24)) << t;
    }
    EXPECT_TRUE(std::isnan(got.dweight[4]));
    EXPECT_TRUE(std::isfinite(got.dweight[0]));
  });
}

}  // namespace
}  // namespace adder::tests
