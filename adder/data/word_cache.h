#pragma once

#include <array>
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

  struct Entry {
    std::array<uint64_t, kMaxBytes / 8> bytes;  // zeros behind the word
    std::array<int32_t, kMaxTokens> ids;
    uint8_t size = 0;  // of the word in bytes; 0: nothing is here
    uint8_t count = 0;
  };
  static_assert(sizeof(Entry) == 64, "an entry is a cache line");

  WordCache() : entries_(kEntries) {}

  // A word of at most kMaxBytes bytes, ready to be looked for. `room`: how many bytes can be read from its beginning
  // on.
  struct Key {
    std::array<uint64_t, kMaxBytes / 8> bytes;
    size_t size;
    Key(std::string_view word, size_t room) : bytes{}, size(word.size()) {
      if (room < kMaxBytes) {
        std::memcpy(bytes.data(), word.data(), word.size());
        return;
      }
      std::memcpy(bytes.data(), word.data(), kMaxBytes);
      for (size_t i = 0; i < bytes.size(); ++i)
        bytes[i] &= size >= 8 * (i + 1) ? ~uint64_t{0} : size <= 8 * i ? 0 : (uint64_t{1} << 8 * (size - 8 * i)) - 1;
    }
  };

  // The entry with this word, or the one whose place it would take.
  Entry& at(const Key& key) {
    const auto mix = [](uint64_t a, uint64_t b) { return (a ^ b >> 29 ^ b) * 0x9E3779B97F4A7C15u; };
    uint64_t hash = mix(key.bytes[0], key.size);
    hash = mix(key.bytes[1], hash);
    if (key.size > 16) hash = mix(key.bytes[3], mix(key.bytes[2], hash));
    return entries_[(hash ^ hash >> 32) & (kEntries - 1)];
  }
  static bool holds(const Entry& entry, const Key& key) { return entry.size == key.size && entry.bytes == key.bytes; }

  static void put(Entry& entry, const Key& key, const int64_t* ids, size_t count) {
    entry.bytes = key.bytes;
    entry.size = static_cast<uint8_t>(key.size);
    entry.count = static_cast<uint8_t>(count);
    for (size_t i = 0; i < count; ++i) entry.ids[i] = static_cast<int32_t>(ids[i]);
  }

 private:
  std::vector<Entry> entries_;
};

}  // namespace adder::data
