#pragma once

#include <cstdint>
#include <string>

#include "adder/data/tokenizer.h"

namespace adder::data {

// Decodes tokens as they come, into whole characters: all that it returns, one after another, is what
// Tokenizer::decode makes of all tokens. The tokenizer must outlive it.
class StreamDecoder {
 public:
  // skip_special: as in Tokenizer::decode.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = false)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The characters that the token completes; none where a character still lacks bytes.
  std::string push(int64_t id);
  // U+FFFD where the end leaves a character incomplete. Then a new text may begin.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;  // the first bytes of a character
};

}  // namespace adder::data
