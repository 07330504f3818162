#include "adder/data/pre_tokenizer.h"

#include <array>

#include "adder/data/unicode.h"

namespace adder::data {
namespace {

constexpr std::array<CodePointKind, 128> kAsciiKinds = [] {
  std::array<CodePointKind, 128> kinds{};
  for (size_t c = 0; c < kinds.size(); ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool space = c == ' ' || (c >= '\t' && c <= '\r');
    kinds[c] = letter                 ? CodePointKind::kLetter
               : c >= '0' && c <= '9' ? CodePointKind::kNumber
               : space                ? CodePointKind::kSpace
                                      : CodePointKind::kOther;
  }
  return kinds;
}();

struct Step {
  CodePointKind kind;
  size_t length;
};

inline Step step_at(std::string_view text, size_t at) {
  const auto byte = static_cast<uint8_t>(text[at]);
  if (byte < 0x80) return {kAsciiKinds[byte], 1};
  const CodePoint point = code_point_at(text, at);
  return {kind_of(point.code), point.length};
}

inline size_t run_end(std::string_view text, size_t at, CodePointKind kind) {
  while (at < text.size()) {
    if (const auto byte = static_cast<uint8_t>(text[at]); byte < 0x80) {
      if (kAsciiKinds[byte] != kind) break;
      ++at;
      continue;
    }
    const Step step = step_at(text, at);
    if (step.kind != kind) break;
    at += step.length;
  }
  return at;
}

// 's 't 're 've 'm 'll 'd: the bytes of the one that begins at text[at], an apostrophe; 0 where none does.
size_t contraction_bytes(std::string_view text, size_t at) {
  const char first = at + 1 < text.size() ? text[at + 1] : '\0', second = at + 2 < text.size() ? text[at + 2] : '\0';
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  if ((first == 'r' || first == 'v') && second == 'e') return 3;
  return first == 'l' && second == 'l' ? 3 : 0;
}

}  // namespace

size_t word_end(std::string_view text, size_t begin) {
  if (text[begin] == '\'') {
    if (const size_t bytes = contraction_bytes(text, begin); bytes != 0) return begin + bytes;
  }
  Step step = step_at(text, begin);
  if (step.kind != CodePointKind::kSpace) return run_end(text, begin + step.length, step.kind);
  size_t last = begin, end = begin + step.length;  // the last of the spaces, and where it ends
  if (text[begin] != ' ' || end == text.size() || step_at(text, end).kind == CodePointKind::kSpace) {
    while (end < text.size() && (step = step_at(text, end)).kind == CodePointKind::kSpace) {
      last = end;
      end += step.length;
    }
    // A run of spaces leaves its last one to the word behind it.
    return end == text.size() || last == begin ? end : last;
  }
  step = step_at(text, end);
  return run_end(text, end + step.length, step.kind);
}

}  // namespace adder::data
