#include "adder/data/token_stream.h"

#include <limits>
#include <vector>

#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using ::testing::ElementsAre;

TEST(ByteStream, GivesBytesAsTokens) {
  const TemporaryFolder folder;
  const ByteStream stream(read_text({folder.write("a", "ab"), folder.write("b", std::string("\0\xff", 2))}));
  EXPECT_EQ(stream.size(), 4);
  EXPECT_EQ(stream.vocab_size(), 256);
  EXPECT_THAT(stream.documents(), ElementsAre(0, 2));
  std::vector<int64_t> out(4);
  stream.copy(0, 4, out.data());
  EXPECT_THAT(out, ElementsAre('a', 'b', 0, 255));
  stream.copy(3, 1, out.data());
  EXPECT_EQ(out[0], 255);
  stream.copy(4, 0, nullptr);
}

TEST(ByteStream, ErrorsNameThePlace) {
  const TemporaryFolder folder;
  const auto a = folder.write("a", "abc");
  const auto b = folder.write("b", "de\xc3\xa4");
  EXPECT_EQ(error_of([&] { ByteStream(read_text({a, b}), 128); }),
            b.string() + ": byte 2 is 195, outside the vocabulary of 128");
  EXPECT_EQ(error_of([&] { ByteStream(read_text({a, b}), 100); }),
            b.string() + ": byte 0 is 100, outside the vocabulary of 100");
  EXPECT_EQ(error_of([&] { ByteStream(read_text({a}), 257); }),
            "text: vocab_size for bytes must be from 1 to 256, got 257");
  const ByteStream stream(read_text({a}));
  std::vector<int64_t> out(4);
  EXPECT_EQ(error_of([&] { stream.copy(1, 3, out.data()); }),
            a.string() + ": tokens [1, 1 + 3) are outside the stream of 3");
  EXPECT_THROW(stream.copy(-1, 1, out.data()), Error);
  EXPECT_THROW(stream.copy(1, -1, out.data()), Error);
  EXPECT_THROW(stream.copy(INT64_MAX, INT64_MAX, out.data()), Error);
}

TEST(Split, HoldsOutTheEnd) {
  EXPECT_EQ(split_at_end(1'115'394, 0.1).train, (Range{0, 1'003'854}));
  EXPECT_EQ(split_at_end(1'115'394, 0.1).validation, (Range{1'003'854, 1'115'394}));
  EXPECT_EQ(split_at_end(100, 0).validation.size(), 0);
  EXPECT_EQ(split_at_end(0, 0.5).train.size(), 0);
  EXPECT_EQ(split_at_end(7, 0.5).train.size(), 3);
  EXPECT_EQ(split_at_end(int64_t{1} << 62, 0.25).train.size(), 3 * (int64_t{1} << 60));
}

// In floating point 10 * (1 - 0.9) is 0.9999999999999998.
TEST(Split, DecimalFractionsAreExact) {
  for (int64_t percent = 0; percent < 100; ++percent)
    for (const int64_t size : {10, 100, 1000, 12'345'678})
      EXPECT_EQ(split_at_end(size, static_cast<double>(percent) / 100).train.size(), size * (100 - percent) / 100)
          << size << " " << percent;
}

TEST(Split, FractionOutsideTheRange) {
  EXPECT_EQ(error_of([] { split_at_end(10, 1); }), "held-out fraction must be at least 0 and below 1, got 1");
  EXPECT_THROW(split_at_end(10, -0.1), Error);
  EXPECT_THROW(split_at_end(10, std::numeric_limits<double>::quiet_NaN()), Error);
}

}  // namespace
}  // namespace adder::data
