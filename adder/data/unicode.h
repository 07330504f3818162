#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "adder/data/unicode_tables.h"

namespace adder::data {

// What the GPT-2 pattern tells apart: \p{L}, \p{N}, \s and everything else.
enum class CodePointKind : uint8_t { kOther, kLetter, kNumber, kSpace };

struct CodePoint {
  char32_t code;
  size_t length;  // in bytes
};

// The code point that begins at text[at], in text that is valid UTF-8.
inline CodePoint code_point_at(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<uint8_t>(text[at + i])); };
  const auto next = [&](size_t i) { return byte(i) & 0x3F; };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) < 0xE0) return {(byte(0) & 0x1F) << 6 | next(1), 2};
  if (byte(0) < 0xF0) return {(byte(0) & 0xF) << 12 | next(1) << 6 | next(2), 3};
  return {(byte(0) & 0x7) << 18 | next(1) << 12 | next(2) << 6 | next(3), 4};
}

inline const unicode::CodePointProperties& properties_of(char32_t code) {
  using unicode::kBlockSize;
  return unicode::kProperties[unicode::kBlocks[unicode::kBlockOf[code / kBlockSize]][code % kBlockSize]];
}

inline CodePointKind kind_of(char32_t code) {
  return static_cast<CodePointKind>(properties_of(code).kind);
}

// What begins at text[at], which may be anything: a whole code point of UTF-8, the beginning of one that the text's end
// cuts, or bytes that no code point begins with. `length` bytes of it belong together; for broken ones that is what one
// U+FFFD stands for.
struct Utf8Piece {
  enum class State : uint8_t { kWhole, kCut, kBroken } state;
  size_t length;
};
Utf8Piece utf8_piece_at(std::string_view text, size_t at);

// How many bytes at the beginning of the text are valid UTF-8.
size_t valid_utf8_bytes(std::string_view text);

// The first byte outside ASCII from `at` on, or the text's size.
size_t skip_ascii(std::string_view text, size_t at);

void append_utf8(char32_t code, std::string& out);

// Appends the bytes with U+FFFD for what is no UTF-8, as far as it can be told: a code point that the end cuts is left.
// Returns how many bytes were taken.
inline constexpr char32_t kReplacement = 0xFFFD;
size_t append_lossy(std::string_view bytes, std::string& out);

// The text, valid UTF-8, in Unicode's normalization form C: `text` itself where it is that already, otherwise a view of
// `storage`.
std::string_view to_nfc(std::string_view text, std::string& storage);

}  // namespace adder::data
