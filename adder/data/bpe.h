#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "adder/data/flat_map.h"

namespace adder::data {

// Byte-pair encoding: a word begins as its bytes, and as long as neighbours have a rule, those whose rule comes first
// are merged (of several such pairs the leftmost).
class Bpe {
 public:
  struct Rule {
    int32_t left, right, merged;
  };

  // What one thread needs while it encodes; it may serve any number of words.
  class Scratch {
    friend class Bpe;
    struct Symbol {
      int32_t id;              // -1 once merged into the one before
      int32_t previous, next;  // positions; -1 at the ends
    };
    struct Candidate {
      uint32_t rank;
      int32_t position, left, right;
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
  };

  // `byte_ids`: the token of each byte, -1 for bytes that no text holds. The rules come in the order of their rank, no
  // pair twice.
  Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Rule>& rules);

  // Appends the tokens of a word, all of whose bytes have one.
  void encode(std::string_view word, Scratch& scratch, std::vector<int64_t>& out) const;

 private:
  struct Merge {
    uint32_t rank;
    int32_t merged;
  };
  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  const Merge* find(int32_t left, int32_t right) const { return merges_.find(pair_key(left, right)); }
  void encode_short(std::string_view word, std::vector<int64_t>& out) const;
  void encode_long(std::string_view word, Scratch& scratch, std::vector<int64_t>& out) const;

  std::array<int32_t, 256> byte_ids_;
  FlatMap<Merge> merges_;
};

}  // namespace adder::data
