#pragma once

#include <bitset>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "adder/data/flat_map.h"

namespace adder::data {

// May text name special tokens, or do they mean nothing in it (untrusted text)?
enum class SpecialTokens : uint8_t { kAllowed, kAsText };

// A token that is looked for in the text before that is split into words.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character stands before or behind it
  bool lstrip = false;       // takes the spaces before it
  bool rstrip = false;       // takes the spaces behind it
  bool normalized = false;   // is looked for in the normalized text
  bool special = false;
};

// Finds added tokens in text: from left to right, of several at one place the longest.
class AddedTokenFinder {
 public:
  // Of two tokens with the same content the first one counts. No content is empty.
  explicit AddedTokenFinder(std::vector<AddedToken> tokens);

  // Hands the text over, valid UTF-8, in order and in pieces: `take_text` gets what lies between tokens, never empty.
  template <typename TakeText, typename TakeToken>
  void split(std::string_view text, SpecialTokens special, TakeText&& take_text, TakeToken&& take_token) const {
    size_t begin = 0;
    for (size_t at = 0; at < text.size();) {
      Match match;
      if (!find(text, at, match)) break;
      at = match.end;
      if (special == SpecialTokens::kAsText && tokens_[match.token].special) continue;
      if (!fits(text, begin, match)) continue;
      if (begin < match.begin) take_text(text.substr(begin, match.begin - begin));
      take_token(tokens_[match.token].id);
      begin = match.end;
    }
    if (begin < text.size()) take_text(text.substr(begin));
  }

 private:
  struct Match {
    int32_t token = 0;
    size_t begin = 0, end = 0;
  };
  struct Node {
    int32_t node;
    int32_t token;  // that ends here, or -1
  };
  // The first match at `from` or later.
  bool find(std::string_view text, size_t from, Match& match) const;
  bool match_at(std::string_view text, size_t at, Match& match) const;
  // Applies single_word, lstrip and rstrip; `begin` is where the token before ends.
  bool fits(std::string_view text, size_t begin, Match& match) const;

  std::vector<AddedToken> tokens_;
  FlatMap<Node> trie_;  // by node and byte; the root is node 0
  std::bitset<256> first_bytes_;
  std::bitset<65536> first_pairs_;  // two bytes that a match can begin with; of a token of one byte, all
  int only_first_byte_ = -1;
};

}  // namespace adder::data
