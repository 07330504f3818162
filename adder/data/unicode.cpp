#include "adder/data/unicode.h"

#include <cstring>

namespace adder::data {

Utf8Piece utf8_piece_at(std::string_view text, size_t at) {
  using State = Utf8Piece::State;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[at + i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {State::kWhole, 1};
  const size_t length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0) return {State::kBroken, 1};
  // The second byte says whether it is overlong, a surrogate, or too large.
  const uint8_t lowest = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t highest = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (at + i == text.size()) return {State::kCut, i};
    if (byte(i) < (i == 1 ? lowest : 0x80) || byte(i) > (i == 1 ? highest : 0xBF)) return {State::kBroken, i};
  }
  return {State::kWhole, length};
}

size_t skip_ascii(std::string_view text, size_t at) {
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080u) break;
  }
  while (at < text.size() && static_cast<uint8_t>(text[at]) < 0x80) ++at;
  return at;
}

size_t valid_utf8_bytes(std::string_view text) {
  size_t at = 0;
  while ((at = skip_ascii(text, at)) < text.size()) {
    const Utf8Piece piece = utf8_piece_at(text, at);
    if (piece.state != Utf8Piece::State::kWhole) break;
    at += piece.length;
  }
  return at;
}

size_t append_lossy(std::string_view bytes, std::string& out) {
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Piece piece = utf8_piece_at(bytes, at);
    if (piece.state == Utf8Piece::State::kCut) return at;
    if (piece.state == Utf8Piece::State::kWhole) {
      out += bytes.substr(at, piece.length);
    } else {
      append_utf8(kReplacement, out);
    }
    at += piece.length;
  }
  return bytes.size();
}

void append_utf8(char32_t code, std::string& out) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | code >> 6);
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

}  // namespace adder::data
