#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace adder::core {

// XXH3-128 as 32 hexadecimal digits, as `xxh128sum` prints it. Finds accidents, not forgeries.
std::string hash_bytes(std::span<const std::byte> bytes);

// The same over bytes that come in pieces.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void update(std::span<const std::byte> bytes);
  std::string hex() const;

 private:
  void* state_;
};

}  // namespace adder::core
