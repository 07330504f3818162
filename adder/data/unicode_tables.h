#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

// What unicode_tables.cpp holds, which tools/make_unicode_tables.py writes.
namespace adder::data::unicode {

struct CodePointProperties {
  uint8_t kind;             // a CodePointKind
  uint8_t word;             // 1 where a regular expression's \w takes it
  uint8_t combining_class;  // the canonical one; 0 for starters
  uint8_t nfc_check;        // may it stand in form C? 0 yes, 1 depends on what is before it, 2 no
};

// A code point's properties are kProperties[kBlocks[kBlockOf[code / kBlockSize]][code % kBlockSize]].
inline constexpr size_t kBlockSize = 128;
extern const CodePointProperties kProperties[];
extern const uint8_t kBlockOf[];
extern const uint8_t kBlocks[][kBlockSize];

// One canonical step, `second` 0 where there is one code point only; Hangul syllables are left to arithmetic.
struct Decomposition {
  char32_t code, first, second;
};
inline constexpr size_t kDecompositionCount = 2060;
inline constexpr size_t kCompositionCount = 940;
extern const std::array<Decomposition, kDecompositionCount> kDecompositions;  // rising by `code`
// Those that NFC puts together again, rising by `first` and `second`.
extern const std::array<uint16_t, kCompositionCount> kCompositions;

}  // namespace adder::data::unicode
