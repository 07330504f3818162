#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace adder::data {

// The tokens of words seen lately, for one thread at a time. A new word takes the place of another one, so that the
// cache never grows; words that are long or have many tokens are not kept.
class WordCache {
 public:
  static constexpr size_t kMaxBytes = 32;
  static constexpr size_t kMaxTokens = 7;
  static constexpr size_t kEntries = size_t{1} << 15;

  struct alignas(64) Entry {
    std::array<uint64_t, kMaxBytes / 8> bytes;  // zeros behind the word
    std::array<int32_t, kMaxTokens> ids;
    uint8_t size = 0;  // of the word in bytes; 0: nothing is here
    uint8_t count = 0;
  };
  static_assert(sizeof(Entry) == 64, "an entry fills a cache line");

  WordCache() : entries_(kEntries) {}

  // A word of at most kMaxBytes bytes, ready to be looked for. `room` is how many bytes there
  // are from its beginning on, at least its own.
  struct Key {
    std::array<uint64_t, kMaxBytes / 8> bytes;
    size_t size;
    Key(std::string_view word, size_t room) : bytes{}, size(word.size()) {
      if (size > 16 || room < 16) {
        std::memcpy(bytes.data(), word.data(), size);
        return;
      }
      std::memcpy(bytes.data(), word.data(), 16);
      bytes[0] &= size >= 8 ? ~uint64_t{0} : (uint64_t{1} << 8 * size) - 1;
      bytes[1] &= size <= 8 ? 0 : size == 16 ? ~uint64_t{0} : (uint64_t{1} << 8 * (size - 8)) - 1;
    }
    bool operator==(const Entry& entry) const {
      return entry.bytes[0] == bytes[0] && entry.bytes[1] == bytes[1] && entry.size == size &&
             (size <= 16 || (entry.bytes[2] == bytes[2] && entry.bytes[3] == bytes[3]));
    }
  };

  // The entry with this word, which is one of two places that it may have, or null.
  const Entry* find(const Key& key) const {
    const Entry* pair = &entries_[first_of_pair(key)];
    return key == pair[0] ? pair : key == pair[1] ? pair + 1 : nullptr;
  }

  void put(const Key& key, const int64_t* ids, size_t count) {
    Entry* pair = &entries_[first_of_pair(key)];
    pair[1] = pair[0];
    pair[0].bytes = key.bytes;
    pair[0].size = static_cast<uint8_t>(key.size);
    pair[0].count = static_cast<uint8_t>(count);
    for (size_t i = 0; i < count; ++i) pair[0].ids[i] = static_cast<int32_t>(ids[i]);
  }

 private:
  static size_t first_of_pair(const Key& key) {
    const auto mix = [](uint64_t a, uint64_t b) { return (a ^ b ^ b >> 29) * 0x9E3779B97F4A7C15u; };
    uint64_t hash = mix(key.bytes[1], mix(key.bytes[0], key.size));
    if (key.size > 16) hash = mix(key.bytes[3], mix(key.bytes[2], hash));
    return (hash >> 32) & (kEntries - 2);
  }

  std::vector<Entry> entries_;
};

}  // namespace adder::data
