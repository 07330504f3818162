#include "adder/data/added_tokens.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "adder/data/unicode.h"

namespace adder::data {
namespace {

uint64_t edge(int32_t node, char byte) {
  return static_cast<uint64_t>(static_cast<uint32_t>(node)) << 8 | static_cast<uint8_t>(byte);
}

bool is_continuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

// Where the code point that ends at `end` > 0 begins.
size_t code_point_before(std::string_view text, size_t end) {
  while (is_continuation(text[--end])) {
  }
  return end;
}

bool word_at(std::string_view text, size_t at) {
  return properties_of(code_point_at(text, at).code).word != 0;
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  int32_t nodes = 1;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const std::string& content = tokens_[i].content;
    const auto first = static_cast<uint8_t>(content[0]);
    first_bytes_.set(first);
    for (int second = 0; second < 256; ++second) {
      if (content.size() == 1 || static_cast<uint8_t>(content[1]) == second)
        first_pairs_.set(static_cast<size_t>(first << 8 | second));
    }
    int32_t node = 0;
    for (size_t at = 0; at < content.size(); ++at) {
      const auto [child, is_new] = trie_.insert(edge(node, content[at]), {nodes, -1});
      if (is_new) ++nodes;
      if (at + 1 == content.size() && child->token < 0) child->token = static_cast<int32_t>(i);
      node = child->node;
    }
  }
  for (int byte = 0; byte < 256 && first_bytes_.count() == 1; ++byte)
    if (first_bytes_[static_cast<size_t>(byte)]) only_first_byte_ = byte;
}

bool AddedTokenFinder::match_at(std::string_view text, size_t at, Match& match) const {
  match.token = -1;
  int32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const Node* child = trie_.find(edge(node, text[i]));
    if (!child) break;
    if (child->token >= 0) match = {child->token, at, i + 1};
    node = child->node;
  }
  return match.token >= 0;
}

bool AddedTokenFinder::find(std::string_view text, size_t from, Match& match) const {
  if (first_bytes_.none()) return false;
  for (size_t at = from; at < text.size(); ++at) {
    if (only_first_byte_ >= 0) {
      const void* found = std::memchr(text.data() + at, only_first_byte_, text.size() - at);
      if (!found) return false;
      at = static_cast<size_t>(static_cast<const char*>(found) - text.data());
    }
    const auto byte = static_cast<uint8_t>(text[at]);
    if (!first_bytes_[byte]) continue;
    const size_t pair =
        static_cast<size_t>(byte) << 8 | (at + 1 < text.size() ? static_cast<uint8_t>(text[at + 1]) : 0);
    if (at + 1 < text.size() && !first_pairs_[pair]) continue;
    if (match_at(text, at, match)) return true;
  }
  return false;
}

bool AddedTokenFinder::fits(std::string_view text, size_t begin, Match& match) const {
  const AddedToken& token = tokens_[match.token];
  if (token.single_word) {
    if (match.begin > 0 && word_at(text, code_point_before(text, match.begin))) return false;
    if (match.end < text.size() && word_at(text, match.end)) return false;
  }
  if (token.lstrip) {
    while (match.begin > begin) {
      const size_t before = code_point_before(text, match.begin);
      if (kind_of(code_point_at(text, before).code) != CodePointKind::kSpace) break;
      match.begin = before;
    }
  }
  if (token.rstrip) {
    while (match.end < text.size()) {
      const CodePoint next = code_point_at(text, match.end);
      if (kind_of(next.code) != CodePointKind::kSpace) break;
      match.end += next.length;
    }
  }
  return true;
}

}  // namespace adder::data
