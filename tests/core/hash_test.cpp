#include "adder/core/hash.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace adder::core {
namespace {

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

TEST(Hash, EqualsPublishedValues) {
  EXPECT_EQ(hash_bytes({}), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(hash_bytes(as_bytes("a")), "a96faf705af16834e6c632b61e964e1f");
}

TEST(Hash, PiecesEqualTheWhole) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7 % 251);
  for (const size_t cut : {0, 1, 15, 240, 1024, 4999, 5000}) {
    Hasher hasher;
    hasher.update(as_bytes(text).first(cut));
    hasher.update(as_bytes(text).subspan(cut));
    EXPECT_EQ(hasher.hex(), hash_bytes(as_bytes(text))) << cut;
  }
  std::string other = text;
  other[2500] ^= 1;
  EXPECT_NE(hash_bytes(as_bytes(other)), hash_bytes(as_bytes(text)));
}

}  // namespace
}  // namespace adder::core
