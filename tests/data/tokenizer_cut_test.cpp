#include <optional>
#include <random>

#include "adder/data/tokenizer.h"
#include "tests/data/small_tokenizer.h"

namespace adder::data {
namespace {

using nlohmann::json;

Tokenizer load(const json& document) {
  const TemporaryFolder folder;
  return Tokenizer(folder.write("tokenizer.json", document.dump()));
}

const std::vector<std::string> kMerges = {"a b", "Ġ a", "Ġ Ġ", "Ġa b", "Ċ Ċ", "' s", "Ġ t", "1 2", "ĠĠ ĠĠ", "Ã ©"};

// Words of many scripts, marks that join what is before them, spaces of all kinds, and what added tokens are made of.
std::string random_text(std::mt19937& random, size_t pieces) {
  static const std::vector<std::string> kPieces = {
      "a",      "ab",     "b",      "t",      "'s",     "'",       "'ll",    "'l",     "12",     "3",
      "!",      "<",      "<x>",    "<l>",    "x",      "\u00e9",  "e",      "\u0301", "\u0338", "\u0323",
      "\u4e2d", "\u1100", "\u1161", "\u11a8", "\uac00", "\u0915",  "\u094d", "\u0627", "\u0661", "\U0001f600",
      " ",      " ",      " ",      "  ",     "\n",     "\n",      "\n\n",   "\t",     "\r\n",   "\x0b",
      "\u00a0", "\u2000", "\u3000", "\u2028", "\x1c",   "\u200d",  "\u0085", "\x7f",   "_",      "<|endoftext|>",
      "\u212b", "\u1fef", "\u0344", "\ufb1d", "\x01",   "\u00b4 ", " \u0301"};
  std::string text;
  for (size_t i = 0; i < pieces; ++i) text += kPieces[random() % kPieces.size()];
  return text;
}

// At every place that cut_before() gives, the tokens of both sides are those of the whole; also where only a beginning
// of the text was looked at. Returns how many places there were.
size_t check_cuts(const Tokenizer& tokenizer) {
  std::mt19937 random(7);
  size_t cuts = 0;
  for (int round = 0; round < 400; ++round) {
    const std::string text = random_text(random, 3 + random() % 40);
    for (const auto special : {SpecialTokens::kAllowed, SpecialTokens::kAsText}) {
      const std::vector<int64_t> whole = tokenizer.encode(text, special);
      std::optional<size_t> last;
      for (size_t at = 0; at < text.size(); ++at) {
        const auto cut = tokenizer.cut_before(std::string_view(text).substr(0, at + 1), at);
        EXPECT_EQ(cut, tokenizer.cut_before(text, at));
        if (cut == at) {
          std::vector<int64_t> both = tokenizer.encode(std::string_view(text).substr(0, at), special);
          tokenizer.encode(std::string_view(text).substr(at), special, both);
          EXPECT_EQ(both, whole) << testing::PrintToString(text) << " cut at " << at;
          EXPECT_GT(at, 0u);
          last = at;
          ++cuts;
        }
        EXPECT_EQ(cut, last) << testing::PrintToString(text) << " at " << at;
      }
      EXPECT_EQ(tokenizer.cut_before(text, text.size()), last);
    }
    if (testing::Test::HasFailure()) break;
  }
  return cuts;
}

TEST(TokenizerCut, TokensOfBothSidesAreThoseOfTheWhole) {
  EXPECT_GT(check_cuts(load(small_tokenizer(kMerges))), 1000u);
  json document = small_tokenizer(kMerges);
  document["normalizer"] = nullptr;
  EXPECT_GT(check_cuts(load(document)), 1000u);
  document = small_tokenizer(kMerges);
  document["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_GT(check_cuts(load(document)), 500u);
}

TEST(TokenizerCut, AddedTokensThatDoNotReachAcross) {
  const std::vector<json> added = {{{"content", "<x>"}},
                                   {{"content", "<l>"}, {"lstrip", true}},
                                   {{"content", "  "}, {"normalized", true}},
                                   {{"content", " a"}},
                                   {{"content", "\n\n"}, {"lstrip", true}, {"normalized", true}},
                                   {{"content", " \n"}, {"special", true}},
                                   {{"content", "e\u0301"}, {"normalized", true}},
                                   {{"content", "'l"}, {"special", true}, {"lstrip", true}}};
  for (const bool prefix : {false, true}) {
    json document = small_tokenizer(kMerges, added);
    document["pre_tokenizer"]["add_prefix_space"] = prefix;
    EXPECT_GT(check_cuts(load(document)), 500u);
  }
}

TEST(TokenizerCut, NoneWhereTokensReachAcross) {
  const std::string text = "a b c\nd <x> e";
  const auto cuts = [&](const json& document) { return load(document).cut_before(text, text.size()).has_value(); };
  const auto with = [](const json& token) { return small_tokenizer({}, {token}); };
  EXPECT_TRUE(cuts(with({{"content", "<x>"}})));
  EXPECT_FALSE(cuts(with({{"content", "<x>"}, {"rstrip", true}})));
  EXPECT_FALSE(cuts(with({{"content", "<x>"}, {"single_word", true}})));
  EXPECT_FALSE(cuts(with({{"content", "a b"}})));
  EXPECT_FALSE(cuts(with({{"content", "a "}})));
  EXPECT_FALSE(cuts(with({{"content", " a\n"}, {"normalized", true}})));
  EXPECT_FALSE(cuts(with({{"content", "\u0301 b"}, {"normalized", true}})));
  EXPECT_TRUE(cuts(with({{"content", "\u3000 b"}})));
  json document = with({{"content", "a\nb"}});
  EXPECT_FALSE(cuts(document));
  document["pre_tokenizer"]["add_prefix_space"] = true;  // a cut is never before a newline then
  EXPECT_TRUE(cuts(document));
  document = small_tokenizer();
  document["pre_tokenizer"]["use_regex"] = false;
  EXPECT_FALSE(cuts(document));
}

TEST(TokenizerCut, TheLastPlaceWithinReach) {
  const Tokenizer tokenizer = load(small_tokenizer());
  const std::string text = "one two\nthree";
  EXPECT_EQ(tokenizer.cut_before(text, 100), 7u);
  EXPECT_EQ(tokenizer.cut_before(text, 7), 7u);
  EXPECT_EQ(tokenizer.cut_before(text, 6), 3u);
  EXPECT_EQ(tokenizer.cut_before(text, 2), std::nullopt);
  EXPECT_EQ(tokenizer.cut_before("", 3), std::nullopt);
  EXPECT_EQ(tokenizer.cut_before(" a", 1), std::nullopt);
  EXPECT_EQ(tokenizer.cut_before("a  b", 2), 1u);
  EXPECT_EQ(tokenizer.cut_before("a ", 1), 1u);
  const std::string far = "a " + std::string(1 << 17, 'b');
  EXPECT_EQ(tokenizer.cut_before(far, 1 << 16), 1u);
  EXPECT_EQ(tokenizer.cut_before(far, (1 << 16) + 1), std::nullopt);
}

TEST(TokenizerCut, TextThatIsNotValid) {
  const Tokenizer tokenizer = load(small_tokenizer());
  EXPECT_EQ(tokenizer.cut_before("\u00e9 a", 4), 2u);
  EXPECT_EQ(tokenizer.cut_before("\u3000 a", 4), std::nullopt);
  for (const std::string_view before :
       {"\xff", "\xa9", "\xc3", "a\xa9", "\xe4\xb8", "\xc3\xa9\xa9", "\x80\x80\x80\x80\x80"})
    EXPECT_EQ(tokenizer.cut_before(std::string(before) + " a", 100), std::nullopt) << testing::PrintToString(before);
}

TEST(TokenizerCut, PublishedTokenizer) {
  const auto path = shared_data("tokenizer/gpt-neox-20b.tokenizer.json");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  EXPECT_GT(check_cuts(Tokenizer(path)), 1000u);
}

}  // namespace
}  // namespace adder::data
