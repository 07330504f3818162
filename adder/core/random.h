#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string_view>

// Random values that are addressed instead of drawn: each is a function of (seed, stream, counter) alone, so that it
// depends on no order of calls, no thread and no earlier state, and is the same on every machine.
namespace adder::core {

// One block of Philox4x32-10 (Salmon et al., 2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A seed for one purpose ("data.windows"): parts that share the user's seed must not share their random values.
uint64_t derive_seed(uint64_t seed, std::string_view purpose);

// 64 uniform bits.
uint64_t random_bits(uint64_t seed, uint64_t stream, uint64_t counter);

// Uniform in [0, n), n >= 1; the bias is below n / 2^64.
uint64_t random_below(uint64_t n, uint64_t seed, uint64_t stream, uint64_t counter);

// Uniform in [0, 1), a multiple of 2^-53.
double random_unit(uint64_t seed, uint64_t stream, uint64_t counter);

// The values of one (seed, stream) in the order of their counters. A UniformRandomBitGenerator.
class RandomStream {
 public:
  using result_type = uint64_t;
  RandomStream(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}

  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return std::numeric_limits<uint64_t>::max(); }
  uint64_t operator()() { return random_bits(seed_, stream_, counter_++); }
  uint64_t below(uint64_t n) { return random_below(n, seed_, stream_, counter_++); }
  double unit() { return random_unit(seed_, stream_, counter_++); }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t counter_ = 0;
};

// A pseudo-random permutation of [0, n), n from 1 to 2^63, keyed by (seed, stream), in no memory: a Feistel network
// that is walked until it lands inside [0, n).
class Permutation {
 public:
  Permutation(uint64_t n, uint64_t seed, uint64_t stream);
  // The element at place i < n.
  uint64_t operator()(uint64_t i) const;

 private:
  uint64_t encrypt(uint64_t value) const;

  uint64_t n_;
  uint64_t seed_;
  uint64_t stream_;
  int half_bits_;
};

}  // namespace adder::core
