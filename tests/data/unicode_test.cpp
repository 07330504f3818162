#include "adder/data/unicode.h"

#include <gtest/gtest.h>

#include <string>

#include "adder/data/pre_tokenizer.h"

namespace adder::data {
namespace {

std::string utf8(std::u32string_view codes) {
  std::string text;
  for (const char32_t code : codes) append_utf8(code, text);
  return text;
}

std::string nfc(std::u32string_view codes) {
  std::string storage = "left from before";
  return std::string(to_nfc(utf8(codes), storage));
}

TEST(Utf8, EveryCodePointThereAndBack) {
  for (char32_t code = 0; code < 0x110000; ++code) {
    std::string text;
    append_utf8(code, text);
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    ASSERT_EQ(valid_utf8_bytes(text), surrogate ? 0 : text.size()) << std::hex << static_cast<uint32_t>(code);
    if (surrogate) continue;
    EXPECT_EQ(code_point_at(text, 0).code, code);
    EXPECT_EQ(code_point_at(text, 0).length, text.size());
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const Utf8Piece piece = utf8_piece_at(text.substr(0, cut), 0);
      EXPECT_EQ(piece.state, Utf8Piece::State::kCut);
      EXPECT_EQ(piece.length, cut);
    }
  }
}

TEST(Utf8, SaysWhereItIsBroken) {
  const auto valid = [](const std::string& text) { return valid_utf8_bytes(text); };
  EXPECT_EQ(valid(""), 0u);
  EXPECT_EQ(valid("twenty bytes, ASCII!\xff"), 20u);
  EXPECT_EQ(valid("\xc3\xa9\x80"), 2u);       // a continuation alone
  EXPECT_EQ(valid("a\xc0\x80"), 1u);          // overlong
  EXPECT_EQ(valid("a\xe0\x9f\xbf"), 1u);      // overlong
  EXPECT_EQ(valid("a\xf0\x8f\xbf\xbf"), 1u);  // overlong
  EXPECT_EQ(valid("a\xed\xa0\x80"), 1u);      // a surrogate
  EXPECT_EQ(valid("a\xf4\x90\x80\x80"), 1u);  // behind U+10FFFF
  EXPECT_EQ(valid("a\xf5\x80\x80\x80"), 1u);
  EXPECT_EQ(valid("ab\xe2\x82"), 2u);            // cut
  EXPECT_EQ(valid("\xe2\x82\xac\xe2\x82"), 3u);  // cut
}

TEST(Utf8, OneReplacementForEachBrokenPart) {
  const auto lossy = [](std::string_view bytes) {
    std::string out;
    const size_t taken = append_lossy(bytes, out);
    return out + "|" + std::string(bytes.substr(taken));
  };
  const std::string r = utf8(U"\uFFFD");
  EXPECT_EQ(lossy("a\xff\xfe z"), "a" + r + r + " z|");
  EXPECT_EQ(lossy("\xe2\x82z"), r + "z|");            // the two bytes belong together
  EXPECT_EQ(lossy("\xed\xa0\x80"), r + r + r + "|");  // these do not
  EXPECT_EQ(lossy("\xf0\x9f\x98\xf0\x9f"), r + "|\xf0\x9f");
}

TEST(CodePoints, Kinds) {
  EXPECT_EQ(kind_of('a'), CodePointKind::kLetter);
  EXPECT_EQ(kind_of(U'中'), CodePointKind::kLetter);
  EXPECT_EQ(kind_of(U'Ⅷ'), CodePointKind::kNumber);
  EXPECT_EQ(kind_of(U'٣'), CodePointKind::kNumber);
  EXPECT_EQ(kind_of(0x3000), CodePointKind::kSpace);
  EXPECT_EQ(kind_of(0x1C), CodePointKind::kOther);    // Python's isspace() takes it
  EXPECT_EQ(kind_of(0x200B), CodePointKind::kOther);  // of no width
  EXPECT_EQ(kind_of(0x0301), CodePointKind::kOther);
  EXPECT_EQ(kind_of(0x105C0), CodePointKind::kLetter);  // of Unicode 16
  EXPECT_EQ(kind_of(0x10FFFF), CodePointKind::kOther);
  int letters = 0, numbers = 0, spaces = 0;
  for (char32_t code = 0; code < 0x110000; ++code) {
    letters += kind_of(code) == CodePointKind::kLetter;
    numbers += kind_of(code) == CodePointKind::kNumber;
    spaces += kind_of(code) == CodePointKind::kSpace;
  }
  EXPECT_EQ(letters, 141'028);
  EXPECT_EQ(numbers, 1'911);
  EXPECT_EQ(spaces, 25);
}

TEST(Nfc, NormalTextIsHandedBack) {
  std::string storage;
  for (const std::string& text :
       {std::string(), std::string("only ASCII"), utf8(U"é ß Ω 中文 한글"), utf8(U"\u05D1\u05B0\u05BC\u0591 \u0334")})
    EXPECT_EQ(to_nfc(text, storage).data(), text.data()) << text;
}

TEST(Nfc, ComposesAndOrders) {
  EXPECT_EQ(nfc(U"e\u0301"), utf8(U"é"));
  EXPECT_EQ(nfc(U"before e\u0301 between o\u0308 after"), utf8(U"before é between ö after"));
  EXPECT_EQ(nfc(U"é\u0323"), utf8(U"ẹ\u0301"));              // a mark below goes before one above
  EXPECT_EQ(nfc(U"q\u0307\u0323"), utf8(U"q\u0323\u0307"));  // ordered, not composed
  EXPECT_EQ(nfc(U"a\u0301\u0301"), utf8(U"á\u0301"));
  EXPECT_EQ(nfc(U"a\u0334\u0301"), utf8(U"á\u0334"));        // composes past a mark of another class
  EXPECT_EQ(nfc(U"a\u0305\u0301"), utf8(U"a\u0305\u0301"));  // not past one of its own
  EXPECT_EQ(nfc(U"o\u0302\u0301"), utf8(U"ố"));
  EXPECT_EQ(nfc(U"\u0301a\u0301"), utf8(U"\u0301á"));
  EXPECT_EQ(nfc(U"\u212B\u2126\u0344"), utf8(U"ÅΩ\u0308\u0301"));  // what form C never holds
  EXPECT_EQ(nfc(U"\u0958"), utf8(U"\u0915\u093C"));                // stays apart
  EXPECT_EQ(nfc(U"\u1100\u1161\u11A8 \uAC00\u11A8 \uAC01\u11A8"), utf8(U"\uAC01 \uAC01 \uAC01\u11A8"));
  EXPECT_EQ(nfc(U"\u1100\u0301\u1161"), utf8(U"\u1100\u0301\u1161"));
  EXPECT_EQ(nfc(U"\U00011935\U00011930"), utf8(U"\U00011935\U00011930"));  // composes since Unicode 13
}

// A run of marks without an end must not take quadratic time.
TEST(Nfc, LongRunsOfMarks) {
  std::u32string codes = U"a";
  for (int i = 0; i < 200'000; ++i) codes += i % 2 ? U'\u0323' : U'\u0305';
  const std::string text = nfc(codes);
  EXPECT_EQ(text.size(), utf8(codes).size());  // one of them becomes a part of the letter, which gains two bytes
  EXPECT_EQ(text.substr(0, 5), utf8(U"ạ\u0323"));
}

std::string words(std::string_view text) {
  std::string row;
  for (size_t at = 0; at < text.size();) {
    const size_t end = word_end(text, at);
    row += (at == 0 ? "" : "|") + std::string(text.substr(at, end - at));
    at = end;
  }
  return row;
}

TEST(Words, AreThoseOfThePattern) {
  EXPECT_EQ(words("Hello world"), "Hello| world");
  EXPECT_EQ(words("it's we'll they've I'd 'tis 'S"), "it|'s| we|'ll| they|'ve| I|'d| '|tis| '|S");
  EXPECT_EQ(words("'re're'r"), "'re|'re|'|r");
  EXPECT_EQ(words("''s 's"), "''|s| '|s");
  EXPECT_EQ(words("abc123 45.6!? x"), "abc|123| 45|.|6|!?| x");
  EXPECT_EQ(words("a  b"), "a| | b");
  EXPECT_EQ(words("a \t\n b"), "a| \t\n| b");
  EXPECT_EQ(words("a\nb\n\nc"), "a|\n|b|\n|\n|c");
  EXPECT_EQ(words("a  "), "a|  ");
  EXPECT_EQ(words(" "), " ");
  EXPECT_EQ(words("  \t"), "  \t");
  EXPECT_EQ(words("a\xc2\xa0"
                  "b"),
            "a|\xc2\xa0|b");  // only a space joins the word behind it
  EXPECT_EQ(words("a \xc2\xa0"
                  "b"),
            "a| |\xc2\xa0|b");
  EXPECT_EQ(words("naïve Ωmega ١٢ 北京!"), "naïve| Ωmega| ١٢| 北京|!");
  EXPECT_EQ(words("e\xcc\x81x"), "e|\xcc\x81|x");  // a mark is no letter
  EXPECT_EQ(words(std::string_view("a\0b", 3)), std::string_view("a|\0|b", 5));
}

}  // namespace
}  // namespace adder::data
