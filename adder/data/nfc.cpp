#include <algorithm>
#include <vector>

#include "adder/data/unicode.h"

namespace adder::data {
namespace {

enum NfcCheck : uint8_t { kYes, kMaybe, kNo };

// Hangul syllables are a leading consonant, a vowel, and perhaps a tail, in arithmetic order.
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;  // kTails: no tail
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

struct Mark {
  char32_t code;
  uint8_t combining_class;
};

void decompose(char32_t code, std::vector<Mark>& out) {
  if (code - kSyllables < kSyllableCount) {
    const char32_t index = code - kSyllables, tail = index % kTailCount;
    out.push_back({kLeads + index / kTailCount / kVowelCount, 0});
    out.push_back({kVowels + index / kTailCount % kVowelCount, 0});
    if (tail != 0) out.push_back({kTails + tail, 0});
    return;
  }
  const auto& table = unicode::kDecompositions;
  const auto found = std::lower_bound(table.begin(), table.end(), code,
                                      [](const unicode::Decomposition& row, char32_t key) { return row.code < key; });
  if (found == table.end() || found->code != code) {
    out.push_back({code, properties_of(code).combining_class});
    return;
  }
  decompose(found->first, out);
  if (found->second != 0) decompose(found->second, out);
}

// 0 where the two stay apart.
char32_t compose(char32_t first, char32_t second) {
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount)
    return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTailCount == 0 && second > kTails &&
      second < kTails + kTailCount)
    return first + (second - kTails);
  const auto& pairs = unicode::kCompositions;
  const auto found = std::lower_bound(pairs.begin(), pairs.end(), std::pair(first, second),
                                      [](uint16_t index, std::pair<char32_t, char32_t> key) {
                                        const unicode::Decomposition& row = unicode::kDecompositions[index];
                                        return std::pair(row.first, row.second) < key;
                                      });
  if (found == pairs.end()) return 0;
  const unicode::Decomposition& row = unicode::kDecompositions[*found];
  return row.first == first && row.second == second ? row.code : 0;
}

void append_normalized(std::string_view text, std::vector<Mark>& marks, std::string& out) {
  marks.clear();
  for (size_t at = 0; at < text.size();) {
    const auto [code, length] = code_point_at(text, at);
    decompose(code, marks);
    at += length;
  }
  for (auto begin = marks.begin(); begin != marks.end();) {
    const auto end = std::find_if(begin + 1, marks.end(), [](const Mark& mark) { return mark.combining_class == 0; });
    std::stable_sort(begin, end, [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; });
    begin = end;
  }
  // A mark joins the last starter where no mark of its class or a higher one stands between.
  size_t kept = 0, starter = 0;
  bool has_starter = false;
  for (const Mark mark : marks) {
    if (has_starter && (kept == starter + 1 || marks[kept - 1].combining_class < mark.combining_class)) {
      if (const char32_t whole = compose(marks[starter].code, mark.code); whole != 0) {
        marks[starter].code = whole;
        continue;
      }
    }
    if (mark.combining_class == 0) {
      starter = kept;
      has_starter = true;
    }
    marks[kept++] = mark;
  }
  for (size_t i = 0; i < kept; ++i) append_utf8(marks[i].code, out);
}

}  // namespace

std::string_view to_nfc(std::string_view text, std::string& storage) {
  std::vector<Mark> marks;
  size_t copied = 0;   // what lies before is in `storage`, once that is used
  size_t segment = 0;  // the last code point that nothing before it can change
  uint8_t last_class = 0;
  bool used = false;
  for (size_t at = 0; at < text.size();) {
    const auto byte = static_cast<uint8_t>(text[at]);
    if (byte < 0xCC) {  // code points below U+0300 stay as they are
      if (byte < 0x80) {
        at = skip_ascii(text, at);
        segment = at - 1;
      } else {
        segment = at;
        at += 2;
      }
      last_class = 0;
      continue;
    }
    const auto [code, length] = code_point_at(text, at);
    const auto& properties = properties_of(code);
    if (properties.nfc_check == kYes && (properties.combining_class == 0 || properties.combining_class >= last_class)) {
      if (properties.combining_class == 0) segment = at;
      last_class = properties.combining_class;
      at += length;
      continue;
    }
    for (at += length; at < text.size();) {
      const auto next = code_point_at(text, at);
      const auto& after = properties_of(next.code);
      if (after.combining_class == 0 && after.nfc_check == kYes) break;
      at += next.length;
    }
    if (!used) storage.clear();
    used = true;
    storage += text.substr(copied, segment - copied);
    append_normalized(text.substr(segment, at - segment), marks, storage);
    copied = segment = at;
    last_class = 0;
  }
  if (!used) return text;
  return storage += text.substr(copied);
}

}  // namespace adder::data
