#include "adder/data/byte_level.h"

#include <array>

#include "adder/data/unicode.h"

namespace adder::data {
namespace {

constexpr size_t kEnd = 0x144;  // of the characters

constexpr bool stays(unsigned byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<char32_t, 256> kCharacters = [] {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) characters[byte] = stays(byte) ? byte : next++;
  return characters;
}();

constexpr std::array<int, kEnd> kBytes = [] {
  std::array<int, kEnd> bytes{};
  for (int& byte : bytes) byte = -1;
  for (int byte = 0; byte < 256; ++byte) bytes[kCharacters[static_cast<size_t>(byte)]] = byte;
  return bytes;
}();

}  // namespace

std::string bytes_of_token(std::string_view content) {
  std::string bytes;
  for (size_t at = 0; at < content.size();) {
    const CodePoint point = code_point_at(content, at);
    if (point.code >= kEnd || kBytes[point.code] < 0) return std::string(content);
    bytes += static_cast<char>(kBytes[point.code]);
    at += point.length;
  }
  return bytes;
}

std::string token_of_byte(unsigned char byte) {
  std::string token;
  append_utf8(kCharacters[byte], token);
  return token;
}

}  // namespace adder::data
