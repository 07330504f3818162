#include "adder/data/token_stream.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "adder/core/check.h"

namespace adder::data {

ByteStream::ByteStream(Text text, int64_t vocab_size) : text_(std::move(text)), vocab_size_(vocab_size) {
  ADDER_CHECK(vocab_size >= 1 && vocab_size <= 256, "text: vocab_size for bytes must be from 1 to 256, got {}",
              vocab_size);
  const auto bad = std::ranges::find_if(text_.bytes, [&](char c) { return static_cast<uint8_t>(c) >= vocab_size; });
  if (bad == text_.bytes.end()) return;
  const int64_t place = bad - text_.bytes.begin();
  const auto after =
      std::ranges::upper_bound(text_.files, place, {}, [](const Text::File& file) { return file.begin; });
  const Text::File& file = *(after - 1);
  fail("{}: byte {} is {}, outside the vocabulary of {}", file.path.string(), place - file.begin,
       static_cast<uint8_t>(*bad), vocab_size);
}

void ByteStream::copy(int64_t begin, int64_t count, int64_t* out) const {
  ADDER_CHECK(begin >= 0 && count >= 0 && begin <= size() - count,
              "{}: tokens [{}, {} + {}) are outside the stream of {}", text_.files.front().path.string(), begin, begin,
              count, size());
  const auto* from = reinterpret_cast<const uint8_t*>(text_.bytes.data()) + begin;
  std::copy_n(from, count, out);
}

Split split_at_end(int64_t size, double fraction) {
  ADDER_CHECK(fraction >= 0 && fraction < 1, "held-out fraction must be at least 0 and below 1, got {}", fraction);
  constexpr int64_t kUnits = 1'000'000'000;
  const int64_t kept = kUnits - std::llround(fraction * kUnits);
  const auto cut = static_cast<int64_t>(static_cast<__int128>(size) * kept / kUnits);
  return {{0, cut}, {cut, size}};
}

}  // namespace adder::data
