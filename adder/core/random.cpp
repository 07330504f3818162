#include "adder/core/random.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "adder/core/check.h"

namespace adder::core {
namespace {

constexpr int kPhiloxRounds = 10;
constexpr int kFeistelRounds = 8;
// Below six bits a Feistel network reaches too few of the permutations.
constexpr int kMinHalfBits = 3;

uint32_t low(uint64_t x) {
  return static_cast<uint32_t>(x);
}
uint32_t high(uint64_t x) {
  return static_cast<uint32_t>(x >> 32);
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0];
    const uint64_t second = uint64_t{0xCD9E8D57} * counter[2];
    counter = {high(second) ^ counter[1] ^ key[0], low(second), high(first) ^ counter[3] ^ key[1], low(first)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

uint64_t derive_seed(uint64_t seed, std::string_view purpose) {
  return XXH64(purpose.data(), purpose.size(), seed);
}

uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter) {
  const auto block = philox4x32({low(counter), high(counter), low(stream), high(stream)}, {low(seed), high(seed)});
  return uint64_t{block[1]} << 32 | block[0];
}

uint64_t random_below(uint64_t n, uint64_t seed, uint64_t stream, uint64_t counter) {
  ADDER_CHECK(n >= 1, "random_below: n must be at least 1, got 0");
  return static_cast<uint64_t>(static_cast<unsigned __int128>(random_bits(seed, stream, counter)) * n >> 64);
}

double random_unit(uint64_t seed, uint64_t stream, uint64_t counter) {
  return static_cast<double>(random_bits(seed, stream, counter) >> 11) * 0x1p-53;
}

Permutation::Permutation(uint64_t n, uint64_t seed, uint64_t stream) : n_(n), seed_(seed), stream_(stream) {
  ADDER_CHECK(n >= 1 && n <= uint64_t{1} << 63, "Permutation: n must be from 1 to 2^63, got {}", n);
  half_bits_ = std::max(kMinHalfBits, (static_cast<int>(std::bit_width(n - 1)) + 1) / 2);
}

uint64_t Permutation::encrypt(uint64_t value) const {
  const uint32_t mask = low((uint64_t{1} << half_bits_) - 1);
  uint32_t left = low(value >> half_bits_);
  uint32_t right = low(value) & mask;
  for (uint32_t round = 0; round < kFeistelRounds; ++round) {
    const auto block = philox4x32({right, round, low(stream_), high(stream_)}, {low(seed_), high(seed_)});
    left = std::exchange(right, left ^ (block[0] & mask));
  }
  return uint64_t{left} << half_bits_ | right;
}

uint64_t Permutation::operator()(uint64_t i) const {
  ADDER_CHECK(i < n_, "Permutation: place must be below {}, got {}", n_, i);
  do i = encrypt(i);
  while (i >= n_);
  return i;
}

}  // namespace adder::core
