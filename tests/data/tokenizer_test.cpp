#include "adder/data/tokenizer.h"

#include <thread>

#include "adder/data/stream_decoder.h"
#include "adder/data/text.h"
#include "tests/data/small_tokenizer.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;
using Ids = std::vector<int64_t>;
using nlohmann::json;

Tokenizer load(const json& document) {
  const TemporaryFolder folder;
  return Tokenizer(folder.write("tokenizer.json", document.dump()));
}

Ids encode(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, SpecialTokens::kAllowed);
}

// The contents of the tokens, in a row.
std::string tokens(const Tokenizer& tokenizer, std::string_view text, SpecialTokens special = SpecialTokens::kAllowed) {
  std::string row;
  for (const int64_t id : tokenizer.encode(text, special)) {
    if (!row.empty()) row += '|';
    row += tokenizer.content(id);
  }
  return row;
}

Ids bytes(std::string_view text) {
  Ids ids;
  for (const char byte : text) ids.push_back(static_cast<uint8_t>(byte) + 1);
  return ids;
}

TEST(Tokenizer, BytesWithoutMerges) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.vocab_size(), 257);
  EXPECT_THAT(encode(tokenizer, ""), IsEmpty());
  std::string every;
  for (int code = 0; code < 128; ++code) every += static_cast<char>(code);
  EXPECT_EQ(encode(tokenizer, every), bytes(every));
  EXPECT_EQ(encode(tokenizer, "é 中 😀"), bytes("é 中 😀"));
}

TEST(Tokenizer, MergesByRankAndFromTheLeft) {
  const Tokenizer tokenizer = load(small_tokenizer({"b c", "a b", "ab c", "Ġ a", "a a", "aa a"}));
  EXPECT_EQ(tokens(tokenizer, "abc"), "a|bc");
  EXPECT_EQ(tokens(tokenizer, "ab"), "ab");
  EXPECT_EQ(tokens(tokenizer, " abab"), "Ġ|ab|ab");
  EXPECT_EQ(tokens(tokenizer, "aaaaa"), "aa|aaa");  // pairs from the left, then the first triple it can make
  EXPECT_EQ(tokens(tokenizer, " aa"), "Ġa|a");
}

// The same tokens whether the word is in the cache, and whether its merges are looked for one by one or kept in order.
TEST(Tokenizer, LongWordsAreMergedAsShortOnes) {
  const Tokenizer split = load(small_tokenizer({"a b", "b a", "ab ab", "ba b", "a a", "abab a"}));
  json whole_document = small_tokenizer({"a b", "b a", "ab ab", "ba b", "a a", "abab a"});
  const Tokenizer whole = load(whole_document);
  uint32_t state = 1;
  for (int round = 0; round < 300; ++round) {
    std::string word;
    for (int i = 0; i < 10 + round / 10; ++i) word += (state = state * 1664525 + 1013904223) >> 24 & 1 ? 'a' : 'b';
    const std::string alone = tokens(split, word);
    EXPECT_EQ(tokens(split, word), alone);
    // "c" has no merges: in a word longer than 64 bytes each part keeps its tokens.
    std::string joined, expected;
    while (joined.size() <= 64) {
      joined += word + "c";
      expected += (expected.empty() ? "" : "|") + alone + "|c";
    }
    EXPECT_EQ(tokens(whole, joined), expected);
  }
}

TEST(Tokenizer, AWordOfAMillionBytes) {
  const Tokenizer tokenizer = load(small_tokenizer({"a a", "aa aa", "aaaa aaaa"}));
  EXPECT_EQ(encode(tokenizer, std::string(1'000'000, 'a')).size(), 125'000u);
}

// More words than the cache holds.
TEST(Tokenizer, ManyWords) {
  const Tokenizer tokenizer = load(small_tokenizer({"1 2", "3 4", "12 34"}));
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += " " + std::to_string(i * 7919 % 1'000'003);
  const Ids ids = encode(tokenizer, text);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(encode(tokenizer, text), ids);
  const Tokenizer other = load(small_tokenizer({"1 2", "3 4", "12 34"}));
  Ids alone;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at + 1), text.size());
    const Ids word = encode(other, text.substr(at, end - at));
    alone.insert(alone.end(), word.begin(), word.end());
    at = end;
  }
  EXPECT_TRUE(alone == ids);
}

TEST(Tokenizer, NormalizesWhereAskedTo) {
  json document = small_tokenizer();
  EXPECT_EQ(encode(load(document), "e\u0301"), bytes("é"));
  document["normalizer"] = nullptr;
  EXPECT_EQ(encode(load(document), "e\u0301"), bytes("e\u0301"));
  document["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array({{{"type", "NFC"}}})}};
  EXPECT_EQ(encode(load(document), "e\u0301"), bytes("é"));
  document["normalizer"]["normalizers"] = json::array();
  EXPECT_EQ(encode(load(document), "e\u0301"), bytes("e\u0301"));
}

TEST(Tokenizer, PreTokenizers) {
  json document = small_tokenizer({"a Ġ", "Ġ a"});
  EXPECT_EQ(tokens(load(document), "a a"), "a|Ġa");
  document["pre_tokenizer"]["use_regex"] = false;
  EXPECT_EQ(tokens(load(document), "a a"), "aĠ|a");
  document["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_EQ(tokens(load(document), "a a"), "Ġ|aĠ|a");
  EXPECT_EQ(tokens(load(document), " a"), "Ġa");
  EXPECT_EQ(tokens(load(document), "\na"), "Ġ|Ċ|a");
  EXPECT_EQ(tokens(load(document), "a<|endoftext|>a"), "Ġa|<|endoftext|>|Ġa");
  const json split = {
      {"type", "Split"},
      {"pattern", {{"Regex", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"}}},
      {"behavior", "Isolated"},
      {"invert", false}};
  document["pre_tokenizer"]["add_prefix_space"] = false;
  document["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, document["pre_tokenizer"]}}};
  EXPECT_EQ(tokens(load(document), "a a"), "a|Ġa");
}

TEST(AddedTokens, TheLongestOfTheFirstPlace) {
  const Tokenizer tokenizer = load(
      small_tokenizer({}, {{{"content", "ab"}}, {{"content", "abcd"}}, {{"content", "bcde"}}, {{"content", "  "}}}));
  EXPECT_EQ(tokens(tokenizer, "abcde"), "abcd|e");
  EXPECT_EQ(tokens(tokenizer, "abce"), "ab|c|e");
  EXPECT_EQ(tokens(tokenizer, "xbcde"), "x|bcde");
  EXPECT_EQ(tokens(tokenizer, "a     b"), "a|  |  |Ġ|b");
  EXPECT_EQ(tokens(tokenizer, "<|endoftext|>ab<|endoftext|"), "<|endoftext|>|ab|<|||e|n|d|o|f|t|e|x|t||");
}

TEST(AddedTokens, SpecialOnesMeanNothingInUntrustedText) {
  const Tokenizer tokenizer = load(small_tokenizer({}, {{{"content", "ab"}}}));
  EXPECT_EQ(tokens(tokenizer, "<|endoftext|>ab", SpecialTokens::kAsText), "<|||e|n|d|o|f|t|e|x|t|||>|ab");
  EXPECT_EQ(tokens(tokenizer, "<|endoftext|>ab"), "<|endoftext|>|ab");
}

TEST(AddedTokens, SpacesAndWords) {
  const Tokenizer tokenizer = load(small_tokenizer({}, {{{"content", "<l>"}, {"lstrip", true}},
                                                        {{"content", "<r>"}, {"rstrip", true}},
                                                        {{"content", "word"}, {"single_word", true}}}));
  EXPECT_EQ(tokens(tokenizer, "a \t\u3000<l> b"), "a|<l>|Ġ|b");
  EXPECT_EQ(tokens(tokenizer, " <l><l>"), "<l>|<l>");
  EXPECT_EQ(tokens(tokenizer, "a <r> \n b"), "a|Ġ|<r>|b");
  EXPECT_EQ(tokens(tokenizer, "<r>  <l>  "), "<r>|<l>|Ġ|Ġ");
  EXPECT_EQ(tokens(tokenizer, "word.word word"), "word|.|word|Ġ|word");
  EXPECT_EQ(tokens(tokenizer, "words"), "w|o|r|d|s");
  EXPECT_EQ(tokens(tokenizer, "\u00e9word"), "Ã|©|w|o|r|d");
  EXPECT_EQ(tokens(tokenizer, "_word word\u0301"), "_|w|o|r|d|Ġ|w|o|r|d|Ì|ģ");
}

TEST(AddedTokens, NormalizedOnesAreFoundInNormalizedText) {
  const Tokenizer tokenizer = load(small_tokenizer(
      {}, {{{"content", "e\u0301!"}, {"normalized", true}}, {{"content", "o\u0301"}, {"normalized", false}}}));
  EXPECT_EQ(encode(tokenizer, "é!e\u0301!"), (Ids{257, 257}));
  EXPECT_EQ(encode(tokenizer, "o\u0301"), (Ids{258}));
  EXPECT_EQ(encode(tokenizer, "ó"), bytes("ó"));
}

TEST(Tokenizer, InvalidTextIsAnError) {
  const TemporaryFolder folder;
  const auto path = folder.write("tokenizer.json", small_tokenizer().dump());
  const Tokenizer tokenizer(path);
  EXPECT_EQ(error_of([&] { encode(tokenizer, "abc\xff"); }),
            path.string() + ": text to encode must be valid UTF-8, byte 3 (0xff) is not");
  EXPECT_EQ(error_of([&] { encode(tokenizer, "caf\xc3"); }),
            path.string() + ": text to encode must be valid UTF-8, byte 3 (0xc3) is not");
}

TEST(Tokenizer, KnowsItsTokens) {
  const TemporaryFolder folder;
  const auto path = folder.write("tokenizer.json", small_tokenizer({"Ġ t"}, {{{"content", "  "}}}).dump());
  const Tokenizer tokenizer(path);
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  EXPECT_EQ(tokenizer.end_of_text(), 0);
  EXPECT_TRUE(tokenizer.is_special(0));
  EXPECT_FALSE(tokenizer.is_special(258));
  EXPECT_EQ(tokenizer.content(257), "Ġt");
  EXPECT_EQ(tokenizer.bytes(257), " t");
  EXPECT_EQ(tokenizer.content(258), "  ");
  EXPECT_EQ(tokenizer.find("Ġt"), 257);
  EXPECT_EQ(tokenizer.find(" t"), std::nullopt);
  EXPECT_EQ(tokenizer.content(259), "");
  EXPECT_FALSE(tokenizer.is_special(1'000'000'000'000));
  EXPECT_EQ(error_of([&] { tokenizer.content(-1); }), path.string() + ": an id must be at least 0, got -1");
  json document = small_tokenizer();
  document["added_tokens"].clear();
  document["model"]["vocab"].erase("<|endoftext|>");
  document["model"]["vocab"]["<eos>"] = 0;
  EXPECT_EQ(error_of([&] { Tokenizer(folder.write("tokenizer.json", document.dump())).end_of_text(); }),
            path.string() + ": has no token <|endoftext|>");
}

TEST(Decoding, BytesAndReplacements) {
  const Tokenizer tokenizer = load(small_tokenizer({"Ġ t"}, {{{"content", "中 "}}}));
  EXPECT_EQ(tokenizer.decode(bytes("é 中")), "é 中");
  EXPECT_EQ(tokenizer.decode(Ids{}), "");
  EXPECT_EQ(tokenizer.decode(Ids{257, 0, 258}), " t<|endoftext|>中 ");
  EXPECT_EQ(tokenizer.decode(Ids{257, 0, 258}, true), " t中 ");
  EXPECT_EQ(tokenizer.decode(Ids{0xe4 + 1, 0xb8 + 1, 'x' + 1, 0xff + 1, 0xc3 + 1}), "\ufffdx\ufffd\ufffd");
  EXPECT_EQ(tokenizer.decode(Ids{'a' + 1, 5000, 'b' + 1}), "ab");  // a padded vocabulary's id
}

TEST(Decoding, AStreamGivesWholeCharacters) {
  const Tokenizer tokenizer = load(small_tokenizer());
  StreamDecoder stream(tokenizer, true);
  std::vector<std::string> parts;
  for (const int64_t id : bytes("a中\xe4\xb8!\xf0\x9f\x98\x80\xc3")) parts.push_back(stream.push(id));
  EXPECT_THAT(parts, ElementsAre("a", "", "", "中", "", "", "\ufffd!", "", "", "", "😀", ""));
  EXPECT_EQ(stream.push(0), "");  // a special token that is left out does not end a character
  EXPECT_EQ(stream.finish(), "\ufffd");
  EXPECT_EQ(stream.finish(), "");
  EXPECT_EQ(stream.push('b' + 1), "b");
}

TEST(Decoding, AStreamAgreesWithTheWhole) {
  const Tokenizer tokenizer = load(small_tokenizer());
  uint32_t state = 1;
  for (int round = 0; round < 2000; ++round) {
    Ids ids;
    for (int i = 0; i < 12; ++i) {
      static constexpr std::string_view kBytes = "a\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\xed\xf4\xe0\xff";
      ids.push_back(static_cast<uint8_t>(kBytes[((state = state * 1664525 + 1013904223) >> 8) % kBytes.size()]) + 1);
    }
    StreamDecoder stream(tokenizer);
    std::string text;
    for (const int64_t id : ids) text += stream.push(id);
    EXPECT_EQ(text + stream.finish(), tokenizer.decode(ids));
  }
}

TEST(Tokenizer, ServesManyThreads) {
  const Tokenizer tokenizer = load(small_tokenizer({"1 2", "3 4", "12 34", "Ġ 1"}));
  std::string text;
  for (int i = 0; i < 20'000; ++i) text += " " + std::to_string(i * 7919 % 1'000'003);
  const Ids expected = encode(tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> equal(4);
  for (int& mine : equal)
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) mine += encode(tokenizer, text) == expected;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(equal, ElementsAre(5, 5, 5, 5));
}

class GptNeoX : public testing::Test {
 protected:
  void SetUp() override {
    const auto path = shared_data("tokenizer/gpt-neox-20b.tokenizer.json");
    if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
    tokenizer_.emplace(path);
  }
  std::optional<Tokenizer> tokenizer_;
};

// The ids of the Python package tokenizers 0.23.3.
TEST_F(GptNeoX, IdsOfTheReferencePackage) {
  struct Row {
    std::string text;
    Ids ids;
  };
  const std::vector<Row> rows = {
      {"Hello world", {12092, 1533}},
      {"Mamba is a new state space model architecture.", {46, 31834, 310, 247, 747, 1375, 2317, 1566, 10336, 15}},
      {" leading and trailing  ", {4283, 285, 28417, 50276}},
      {"It's 12345.678, isn't it? They'll've gone!",
       {1147, 434, 1249, 16767, 15, 25025, 13, 3548, 626, 352, 32, 1583, 1833, 1849, 4783, 2}},
      {"def f(x):\n        return x\n\n\n\tpass", {1545, 269, 9, 89, 2262, 187, 50270, 2309, 1269, 2756, 186, 5858}},
      {"<|endoftext|>A<|padding|>B <|endoftext|>", {0, 34, 1, 35, 209, 0}},
      {"Cafe\u0301 nai\u0308ve \u1100\u1161 \u212b", {36, 2320, 860, 36060, 42984, 211, 17732}},
      {"\u5317\u4eac\u306f\u6771\u4eac\u3067\u306f\u306a\u3044\u3002\ud55c\uad6d\uc5b4 "
       "\u0420\u0443\u0441\u0441\u043a\u0438\u0439",
       {15899, 234,   5494, 107, 6418, 12676, 111,   5494,  107,   29741, 18757,
        4340,  39742, 166,  115, 244,  39907, 32082, 46640, 10453, 18664}},
      {{"\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u3000x\000\177", 31},
       {14931, 235, 211,   14931, 228, 103,   325,   224, 14931, 228, 104,
        325,   224, 14931, 228,   102, 17345, 19409, 89,  177,   210}},
      {"a                              b", {66, 50254, 50272, 67}},
      {"\u0915\u094d\u0937\u093f \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0967\u0968\u0969",
       {24381, 17665, 2483, 117, 20489, 9445, 13793, 6900, 13621, 32229, 209, 6123, 102, 6123, 103, 6123, 104}},
  };
  for (const Row& row : rows) {
    EXPECT_THAT(encode(*tokenizer_, row.text), ElementsAreArray(row.ids)) << row.text;
    EXPECT_THAT(encode(*tokenizer_, row.text), ElementsAreArray(row.ids)) << "again: " << row.text;
  }
}

TEST_F(GptNeoX, KnowsItsTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 50'277);
  EXPECT_EQ(tokenizer_->end_of_text(), 0);
  EXPECT_EQ(tokenizer_->find("<|padding|>"), 1);
  EXPECT_EQ(tokenizer_->content(12'092), "Hello");
  EXPECT_EQ(tokenizer_->content(1'533), "Ġworld");
}

TEST_F(GptNeoX, TextThereAndBack) {
  const auto path = shared_data("text/tinyshakespeare.txt.xz");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const std::string text = read_text({path}).bytes;
  const Ids ids = encode(*tokenizer_, text);
  EXPECT_TRUE(tokenizer_->decode(ids) == text);
  StreamDecoder stream(*tokenizer_);
  std::string streamed;
  for (const int64_t id : ids) streamed += stream.push(id);
  EXPECT_TRUE(streamed + stream.finish() == text);
}

}  // namespace
}  // namespace adder::data
