#pragma once

#include <string>
#include <string_view>

namespace adder::data {

// Byte-level vocabularies write each byte as a printable character: most as themselves, the others as U+0100 and up (a
// space is U+0120).

// The bytes that a token of the vocabulary stands for; one with a character that no byte is written as stands for its
// own UTF-8.
std::string bytes_of_token(std::string_view content);

// How the vocabulary writes a byte.
std::string token_of_byte(unsigned char byte);

}  // namespace adder::data
