#include "adder/data/tokenizer_file.h"

#include <fstream>

#include "adder/data/compressed_file.h"
#include "adder/data/tokenizer.h"
#include "tests/data/small_tokenizer.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using nlohmann::json;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The error that the file with this text gives, without the path.
std::string error_of_text(const std::string& text) {
  const TemporaryFolder folder;
  const auto path = folder.write("tokenizer.json", text);
  const std::string error = error_of([&] { Tokenizer tokenizer(path); });
  const std::string prefix = path.string() + ": ";
  return error.starts_with(prefix) ? error.substr(prefix.size()) : error;
}

std::string error_of_document(const json& document) {
  return error_of_text(document.dump());
}

// The error of the small tokenizer after a change: the value at a JSON pointer is replaced, or added.
std::string error_after(const std::string& pointer, const json& value) {
  json document = small_tokenizer({"a b", "ab c"}, {{{"content", "  "}}});
  document[json::json_pointer(pointer)] = value;
  return error_of_document(document);
}

std::string error_without(const std::string& pointer) {
  json document = small_tokenizer({"a b", "ab c"}, {{{"content", "  "}}});
  const json::json_pointer at(pointer);
  document[at.parent_pointer()].erase(at.back());
  return error_of_document(document);
}

TEST(TokenizerFile, ReadsBothFormsOfMerges) {
  const TemporaryFolder folder;
  json document = small_tokenizer({"a b", "ab c"});
  const auto check = [&] {
    const TokenizerParts parts = read_tokenizer_file(folder.write("tokenizer.json", document.dump()));
    ASSERT_EQ(parts.rules.size(), 2u);
    EXPECT_EQ(parts.contents[static_cast<size_t>(parts.rules[1].left)], "ab");
    EXPECT_EQ(parts.contents[static_cast<size_t>(parts.rules[1].right)], "c");
    EXPECT_EQ(parts.contents[static_cast<size_t>(parts.rules[1].merged)], "abc");
  };
  check();
  document["model"]["merges"] = json::array({json::array({"a", "b"}), json::array({"ab", "c"})});
  check();
}

TEST(TokenizerFile, WhatMayBeLeftOutOrMeansNothing) {
  for (const char* key : {"/version", "/truncation", "/padding", "/added_tokens", "/normalizer", "/post_processor",
                          "/model/type", "/model/dropout", "/model/unk_token", "/pre_tokenizer/use_regex"})
    EXPECT_EQ(error_without(key), "no error") << key;
  EXPECT_EQ(error_after("/model/unk_token", "<|endoftext|>"), "no error");
  EXPECT_EQ(error_after("/model/continuing_subword_prefix", ""), "no error");
  EXPECT_EQ(error_after("/model/dropout", 0.0), "no error");
  EXPECT_EQ(error_after("/model/byte_fallback", true), "no error");
  EXPECT_EQ(error_after("/post_processor", {{"type", "ByteLevel"}, {"trim_offsets", false}}), "no error");
}

TEST(TokenizerFile, UnsupportedKeysAreNamedWithWhatTheyHold) {
  EXPECT_EQ(error_after("/foo", {{"a", 1}}), R"(key "foo" is not supported, it holds {"a":1})");
  EXPECT_EQ(error_after("/version", "2.0"), R"(version must be 1.0, got "2.0")");
  EXPECT_EQ(error_after("/truncation", {{"max_length", 5}}), R"(truncation must be null, got {"max_length":5})");
  EXPECT_EQ(error_after("/padding", 1), "padding must be null, got 1");
  EXPECT_EQ(error_after("/normalizer", {{"type", "NFKC"}}),
            R"(normalizer must be null, NFC or a Sequence of these, got {"type":"NFKC"})");
  EXPECT_EQ(error_after("/normalizer", {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}}),
            R"(normalizer.normalizers[0] must be null, NFC or a Sequence of these, got {"type":"Lowercase"})");
  EXPECT_THAT(error_after("/normalizer", {{"type", ""}}), StartsWith("normalizer must be null, NFC or"));
  EXPECT_EQ(error_after("/normalizer", "NFC"), R"(normalizer must be an object, got "NFC")");
  EXPECT_EQ(error_after("/pre_tokenizer", nullptr),
            "pre_tokenizer must be a ByteLevel or a Sequence of a Split and a ByteLevel, got null");
  EXPECT_EQ(error_after("/pre_tokenizer/foo", 3), R"(pre_tokenizer: key "foo" is not supported, it holds 3)");
  EXPECT_EQ(error_after("/pre_tokenizer/add_prefix_space", 1),
            "pre_tokenizer.add_prefix_space must be true or false, got 1");
  EXPECT_EQ(error_without("/pre_tokenizer/add_prefix_space"), R"(pre_tokenizer: key "add_prefix_space" is missing)");
  EXPECT_EQ(error_after("/decoder", nullptr), "decoder must be ByteLevel, got null");
  EXPECT_THAT(error_after("/post_processor", {{"type", "TemplateProcessing"}}),
              StartsWith("post_processor must be null or ByteLevel, got {\"type\":\"TemplateProcessing\"}"));
  EXPECT_EQ(error_after("/model/type", "Unigram"), R"(model.type must be BPE, got "Unigram")");
  EXPECT_EQ(error_after("/model/dropout", 0.1), "model.dropout must be null or 0, got 0.1");
  EXPECT_EQ(error_after("/model/ignore_merges", true), "model.ignore_merges must be false, got true");
  EXPECT_EQ(error_after("/model/end_of_word_suffix", "</w>"),
            R"(model.end_of_word_suffix must be null or empty, got "</w>")");
  EXPECT_EQ(error_after("/model/cache", 1), R"(model: key "cache" is not supported, it holds 1)");
  for (const char* key : {"pre_tokenizer", "decoder", "model"})
    EXPECT_EQ(error_without(std::string("/") + key), std::string("key \"") + key + "\" is missing");
}

TEST(TokenizerFile, SplitsMustBeGpt2s) {
  json split = {{"type", "Split"}, {"pattern", {{"Regex", "\\s+"}}}, {"behavior", "Isolated"}, {"invert", false}};
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}};
  const auto error = [&](const json& members) {
    return error_after("/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", members}});
  };
  EXPECT_EQ(error(json::array({byte_level})), "no error");
  EXPECT_EQ(error({split, byte_level}),
            R"(pre_tokenizer.pretokenizers[0].pattern must be GPT-2's regular expression, got {"Regex":"\\s+"})");
  split["pattern"]["Regex"] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
  EXPECT_EQ(error({split, byte_level}), "no error");
  EXPECT_THAT(error({byte_level, split}),
              StartsWith("pre_tokenizer.pretokenizers must be a ByteLevel, perhaps behind"));
  EXPECT_THAT(error({split, split, byte_level}), StartsWith("pre_tokenizer.pretokenizers must be a ByteLevel"));
  EXPECT_THAT(error(json::array()), StartsWith("pre_tokenizer.pretokenizers must be a ByteLevel"));
  EXPECT_THAT(error(5), StartsWith("pre_tokenizer.pretokenizers must be an array, got 5"));
  EXPECT_THAT(
      error({{{"type", "Digits"}}, byte_level}),
      StartsWith("pre_tokenizer.pretokenizers[0] must be a Split before the ByteLevel, got {\"type\":\"Digits\""));
  byte_level["add_prefix_space"] = true;
  EXPECT_EQ(error({split, byte_level}),
            "pre_tokenizer.pretokenizers[1].add_prefix_space must be false behind a Split, got true");
  byte_level["add_prefix_space"] = false;
  split["behavior"] = "Removed";
  EXPECT_THAT(error({split, byte_level}), HasSubstr("behavior must be Isolated, got \"Removed\""));
  split["behavior"] = "Isolated";
  split["invert"] = true;
  EXPECT_THAT(error({split, byte_level}), HasSubstr("invert must be false, got true"));
}

TEST(TokenizerFile, VocabularyMustBeWhole) {
  EXPECT_EQ(error_after("/model/vocab/abc", 257),
            R"(model.vocab["abc"] must have an id of its own, as "ab" has it, got 257)");
  EXPECT_EQ(error_after("/model/vocab/ab", 260), R"(model.vocab["ab"] must be an id from 0 to 258, got 260)");
  EXPECT_EQ(error_after("/model/vocab/ab", -1), R"(model.vocab["ab"] must be an id from 0 to 258, got -1)");
  EXPECT_EQ(error_after("/model/vocab/ab", 1.5), R"(model.vocab["ab"] must be an id from 0 to 258, got 1.5)");
  EXPECT_EQ(error_after("/model/vocab/ab", 18446744073709551615u),
            R"(model.vocab["ab"] must be an id from 0 to 258, got 18446744073709551615)");
  EXPECT_EQ(error_after("/model/vocab/ab", "1"), R"(model.vocab["ab"] must be an id from 0 to 258, got "1")");
  EXPECT_EQ(error_after("/model/vocab/new", 300), R"(model.vocab["new"] must be an id from 0 to 259, got 300)");
  EXPECT_THAT(error_after("/model/vocab/", 259), StartsWith("model.vocab must have no empty token, got "));
  EXPECT_EQ(error_after("/model/vocab", json::array()), "model.vocab must be an object with tokens, got []");
  EXPECT_EQ(error_after("/model/vocab", json::object()), "model.vocab must be an object with tokens, got {}");
  json document = small_tokenizer();
  document["model"]["vocab"].erase("Ġ");
  document["model"]["vocab"]["Ġx"] = 33;
  EXPECT_THAT(error_of_document(document),
              StartsWith(R"(model.vocab must have a token for each byte of UTF-8, "Ġ" for byte 32 is missing, got {)"));
  document = small_tokenizer();  // text never has this byte, and GPT-NeoX has no token for it
  document["model"]["vocab"].erase(token_of_byte(0xFF));
  EXPECT_EQ(error_of_document(document), "no error");
  std::string text = small_tokenizer().dump();
  text.replace(text.find("\"a\":98"), 6, "\"a\":98,\"a\":98");
  EXPECT_THAT(error_of_text(text), EndsWith("key \"a\" appears twice"));
}

TEST(TokenizerFile, MergesMustBeOfTheVocabulary) {
  EXPECT_EQ(error_after("/model/merges/1", "abc x"),
            R"(model.merges[1] must be of tokens in the vocabulary, "abcx" is not, got "abc x")");
  EXPECT_EQ(error_after("/model/merges/1", "xy c"),
            R"(model.merges[1] must be of tokens in the vocabulary, "xy" is not, got "xy c")");
  EXPECT_EQ(error_after("/model/merges/1", "a b"), R"(model.merges[1] must not repeat element 0, got "a b")");
  for (const char* bad : {"ab", "a b c", "a  b"})
    EXPECT_EQ(error_after("/model/merges/1", bad),
              "model.merges[1] must be two tokens and a space, got \"" + std::string(bad) + "\"");
  EXPECT_THAT(error_after("/model/merges/1", " a"), StartsWith("model.merges[1] must be of tokens in the vocabulary"));
  EXPECT_EQ(error_after("/model/merges/1", {"a", "b", "c"}),
            R"(model.merges[1] must be a pair of tokens, got ["a","b","c"])");
  EXPECT_EQ(error_after("/model/merges/1", json::array({"ab", 3})), "model.merges[1][1] must be a string, got 3");
  EXPECT_EQ(error_after("/model/merges/1", nullptr), "model.merges[1] must be a pair of tokens, got null");
  EXPECT_EQ(error_after("/model/merges", "a b"), "model.merges must be an array, got \"a b\"");
}

TEST(TokenizerFile, AddedTokensMustHaveTheirIds) {
  EXPECT_EQ(error_after("/added_tokens/1/id", 260), "added_tokens[1].id must be 259, the next one, got 260");
  EXPECT_EQ(error_after("/added_tokens/1/id", 3), "added_tokens[1].id must be 259, the next one, got 3");
  EXPECT_EQ(error_after("/added_tokens/0/id", 1), "added_tokens[0].id must be 0, the one in the vocabulary, got 1");
  EXPECT_EQ(error_after("/added_tokens/1/id", -1), "added_tokens[1].id must be 259, the next one, got -1");
  EXPECT_EQ(error_after("/added_tokens/1/id", 4294967296),
            "added_tokens[1].id must be 259, the next one, got 4294967296");
  EXPECT_EQ(error_after("/added_tokens/1/content", ""), "added_tokens[1].content must not be empty, got \"\"");
  EXPECT_EQ(error_after("/added_tokens/1/content", "<|endoftext|>"),
            "added_tokens[1].content must not repeat that of element 0, got \"<|endoftext|>\"");
  EXPECT_EQ(error_after("/added_tokens/1/lstrip", "no"), "added_tokens[1].lstrip must be true or false, got \"no\"");
  EXPECT_EQ(error_without("/added_tokens/1/special"), "added_tokens[1]: key \"special\" is missing");
  EXPECT_EQ(error_after("/added_tokens/1/foo", 1), "added_tokens[1]: key \"foo\" is not supported, it holds 1");
  EXPECT_EQ(error_after("/added_tokens/1", 7), "added_tokens[1] must be an object, got 7");
  EXPECT_EQ(error_after("/added_tokens", 7), "added_tokens must be an array, got 7");
}

TEST(TokenizerFile, BadJson) {
  EXPECT_THAT(error_of_text("{"), StartsWith("is not valid JSON before byte "));
  EXPECT_EQ(error_of_text("[]"), "must be an object, got []");
  EXPECT_THAT(error_of_text(std::string(100'000, '[')), EndsWith("nested more than 64 deep"));
  EXPECT_THAT(error_of_text("{\"version\": \"\xff\"}"), StartsWith("is not valid JSON before byte "));
  EXPECT_EQ(error_of([] { Tokenizer("/nowhere/tokenizer.json"); }),
            "cannot open '/nowhere/tokenizer.json': No such file or directory");
}

// Whatever a byte becomes, the file is read or refused.
TEST(TokenizerFile, NoFlippedByteBreaksIt) {
  const TemporaryFolder folder;
  const std::string text = small_tokenizer({"a b", "ab c"}, {{{"content", "  "}, {"normalized", true}}}).dump();
  const auto path = folder / "tokenizer.json";
  constexpr std::string_view kBytes = "\"[]{},:0129eaful\\n \xc3";
  uint32_t state = 1;
  for (int round = 0; round < 600; ++round) {
    std::string damaged = text;
    for (int i = 0; i <= round % 3; ++i) {
      state = state * 1664525 + 1013904223;
      damaged[(state >> 4) % damaged.size()] = kBytes[(state >> 8) % kBytes.size()];
    }
    if (round % 10 == 0) damaged.resize((state >> 8) % damaged.size());
    if (damaged.empty()) continue;
    folder.write("tokenizer.json", damaged);
    try {
      const Tokenizer tokenizer(path);
      EXPECT_FALSE(tokenizer.encode("abc  <|endoftext|> é", SpecialTokens::kAllowed).empty());
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), StartsWith(path.string()));
    }
  }
}

}  // namespace
}  // namespace adder::data
