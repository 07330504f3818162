#include "adder/ops/transposed.h"

#include "tests/ops/compare.h"

namespace adder::tests {
namespace {

void expect_transposed(const at::Tensor& x) {
  SCOPED_TRACE(testing::Message() << x.sizes() << " strides " << x.strides() << " " << x.scalar_type());
  const at::Tensor y = here::transposed(x);
  EXPECT_TRUE(y.is_contiguous());
  EXPECT_TRUE(same_bits(y, x.transpose(1, 2)));
}

TEST(Transposed, EveryTypeAndSizeBitByBit) {
  for_each_device([] {
    torch::manual_seed(0);
    for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble})
      for (const std::vector<int64_t>& shape : {std::vector<int64_t>{2, 64, 128},
                                                {1, 1, 1},
                                                {3, 65, 63},
                                                {2, 129, 8},
                                                {1, 7, 200},
                                                {2, 0, 5},
                                                {0, 4, 4},
                                                {2, 5, 0},
                                                {1, 72, 64},
                                                {2, 64, 72},
                                                {1, 200, 136}})
        expect_transposed(at::randn(shape).to(type));
  });
}

TEST(Transposed, AnyStrides) {
  for_each_device([] {
    const at::Tensor x = at::randn({3, 70, 90}).to(at::kBFloat16);
    expect_transposed(x.slice(2, 8, 72));
    expect_transposed(x.slice(2, 3, 67));
    expect_transposed(x.slice(1, 1, 66));
    expect_transposed(x.transpose(1, 2));
    expect_transposed(x.slice(2, 0, 90, 3));
    expect_transposed(x.slice(0, 1, 2).expand({4, 70, 90}));
  });
}

TEST(Transposed, ItsGradientIsTransposedToo) {
  for_each_device([] {
    const at::Tensor x = leaf(at::randn({2, 9, 20}), at::kFloat), weight = at::randn({2, 20, 9});
    (here::transposed(x) * weight).sum().backward();
    EXPECT_TRUE(same_bits(x.grad(), weight.transpose(1, 2)));
  });
}

TEST(Transposed, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] { ops::transposed(at::zeros({2, 3})); }),
            "transposed: x must have shape (B, M, N) = (*, *, *), got (2, 3)");
  EXPECT_EQ(error_text([] { ops::transposed(at::zeros({2, 3, 4}, at::kLong)); }),
            "transposed: x must have dtype Float, Double, BFloat16 or Half, got Long");
}

}  // namespace
}  // namespace adder::tests
