#include "adder/data/tokenize.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>
#include <span>

#include "adder/data/token_file.h"
#include "adder/data/tokenizer.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {
namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Bytes as tokens, "ab" as one, and <|endoftext|>.
std::string tokenizer_json() {
  std::string vocab;
  int id = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool plain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    static int shifted = 0;
    if (byte == 0) shifted = 0;
    const int point = plain ? byte : 256 + shifted++;
    vocab += fmt::format("{}\"\\u{:04x}\": {}", id > 0 ? ", " : "", point, id);
    ++id;
  }
  return R"({"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
    "added_tokens": [{"id": 257, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "merges": ["a b"], "vocab": {)" +
         vocab + ", \"ab\": 256}}}";
}

class Tokenize : public testing::Test {
 protected:
  void SetUp() override { tokenizer_ = folder_.write("tokenizer.json", tokenizer_json()); }

  std::vector<int64_t> run(const std::vector<fs::path>& files, const TokenizeOptions& options = {}) {
    reports_.clear();
    early_reports_.clear();
    const int64_t count =
        tokenize_files(files, tokenizer_, folder_ / "out", options,
                       [this](const TokenizeProgress& p) { (p.done ? reports_ : early_reports_).push_back(p); });
    const TokenFile made(folder_ / "out/tokens.bin");
    EXPECT_EQ(made.size(), count);
    EXPECT_EQ(made.vocab_size(), 258);
    starts_.assign(made.documents().begin(), made.documents().end());
    std::vector<int64_t> tokens(static_cast<size_t>(count));
    made.copy(0, count, tokens.data());
    return tokens;
  }
  std::string text_of(const std::vector<int64_t>& tokens) const { return Tokenizer(tokenizer_).decode(tokens); }

  TemporaryFolder folder_;
  fs::path tokenizer_;
  std::vector<TokenizeProgress> reports_, early_reports_;  // of files done, and on the way
  std::vector<int64_t> starts_;
};

TEST_F(Tokenize, FilesAndSeparatorsMakeDocuments) {
  const fs::path one = folder_.write("one.txt", "ab a\fb\f"), two = folder_.write("two.txt", "c");
  EXPECT_EQ(text_of(run({one, two})), "ab a\fb\f<|endoftext|>c<|endoftext|>");
  EXPECT_THAT(starts_, ElementsAre(0, 7));
  TokenizeOptions options;
  options.separator = "\f";
  EXPECT_EQ(text_of(run({one, two}, options)), "ab a\f<|endoftext|>b\f<|endoftext|>c<|endoftext|>");
  EXPECT_THAT(starts_, ElementsAre(0, 5, 8));
  options.end_of_text = false;
  EXPECT_EQ(text_of(run({two, one}, options)), "cab a\fb\f");
  EXPECT_THAT(starts_, ElementsAre(0, 1, 5));
}

TEST_F(Tokenize, LinesOfJson) {
  const fs::path lines =
      folder_.write("a.jsonl", "{\"text\": \"ab\\n\"}\n\n{\"text\": \"\"}\n{\"text\": \"c\", \"x\": 1}");
  EXPECT_EQ(text_of(run({lines})), "ab\n<|endoftext|>c<|endoftext|>");
  TokenizeOptions other;
  other.field = "body";
  EXPECT_THAT(error_of([&] { run({lines}, other); }),
              HasSubstr("a.jsonl: line 1: must be an object with a text 'body'"));
}

TEST_F(Tokenize, SpecialTokensInTextsMeanNothing) {
  const std::vector<int64_t> tokens = run({folder_.write("a.txt", "<|endoftext|>")});
  EXPECT_EQ(tokens.size(), 14u);  // its letters, and the end
  EXPECT_EQ(tokens.back(), 257);
}

// Borders across pieces of a megabyte, and more documents than threads take at once.
TEST_F(Tokenize, ALargeFileInPieces) {
  std::string text;
  for (int i = 0; text.size() < (3u << 20); ++i) text += std::string(static_cast<size_t>(i % 97), 'a') + "b<sep>";
  TokenizeOptions options;
  options.separator = "<sep>";
  options.end_of_text = false;
  options.threads = 3;
  EXPECT_EQ(text_of(run({folder_.write("a.txt", text)}, options)), text);
  EXPECT_EQ(static_cast<size_t>(std::ranges::count(text, '<')), starts_.size());
}

TEST_F(Tokenize, ARunThatWasCutOffGoesOn) {
  const fs::path one = folder_.write("one.txt", "ab"), two = folder_.write("two.txt", "c\xFF");
  EXPECT_THAT(error_of([&] { run({one, two}); }), HasSubstr("two.txt: document 1: "));
  EXPECT_FALSE(fs::exists(folder_ / "out/tokens.bin"));
  folder_.write("two.txt", "cd");
  EXPECT_EQ(text_of(run({one, two})), "ab<|endoftext|>cd<|endoftext|>");
  ASSERT_EQ(reports_.size(), 2u);
  EXPECT_TRUE(reports_[0].kept);
  EXPECT_FALSE(reports_[1].kept);
  EXPECT_FALSE(fs::exists(folder_ / "out/parts"));
  // Another option makes other parts.
  folder_.write("two.txt", "\xFF");
  EXPECT_NE(error_of([&] { run({one, two}); }), "no error");
  folder_.write("two.txt", "c");
  TokenizeOptions options;
  options.end_of_text = false;
  EXPECT_EQ(text_of(run({one, two}, options)), "abc");
  EXPECT_FALSE(reports_[0].kept);
}

// Words, lines, and letters of two bytes.
std::string long_text(size_t bytes) {
  std::mt19937 random(3);
  std::string text;
  while (text.size() < bytes) {
    for (size_t i = random() % 9; i > 0; --i) text += random() % 3 == 0 ? "ab" : random() % 9 == 0 ? "\u00e9" : "b";
    text += random() % 9 == 0 ? "\n" : " ";
  }
  return text;
}

TEST_F(Tokenize, ALongDocumentIsMadeInPieces) {
  const std::string text = long_text(5u << 20);
  std::vector<int64_t> expected = Tokenizer(tokenizer_).encode(text, SpecialTokens::kAsText);
  expected.push_back(257);
  const fs::path file = folder_.write("a.txt", text);
  TokenizeOptions options;
  for (options.threads = 1; options.threads <= 3; ++options.threads) {
    EXPECT_TRUE(run({file}, options) == expected) << options.threads;
    EXPECT_THAT(starts_, ElementsAre(0));
    EXPECT_EQ(reports_.back().documents, 1);
    EXPECT_EQ(reports_.back().bytes, static_cast<int64_t>(text.size()));
    EXPECT_EQ(reports_.back().tokens, static_cast<int64_t>(expected.size()));
    // Before the end of the only document has come.
    EXPECT_GE(std::ranges::count_if(early_reports_, [](const auto& p) { return p.documents == 0 && p.tokens > 0; }), 8);
  }
  // A line of JSON is cut once its text is known.
  const fs::path lines = folder_.write("a.jsonl", "{\"text\": \"b\"}\n" + nlohmann::json{{"text", text}}.dump());
  const std::vector<int64_t> tokens = run({lines}, options);
  EXPECT_TRUE(std::ranges::equal(std::span(tokens).subspan(2), expected));
  EXPECT_THAT(starts_, ElementsAre(0, 2));
  EXPECT_GE(std::ranges::count_if(early_reports_, [](const auto& p) { return p.documents == 1; }), 8);
}

TEST_F(Tokenize, ATokenizerWhoseTokensReachAcrossSpacesTakesADocumentWhole) {
  nlohmann::json json = nlohmann::json::parse(tokenizer_json());
  json["pre_tokenizer"]["use_regex"] = false;
  tokenizer_ = folder_.write("tokenizer.json", json.dump());
  const std::string text = long_text(3u << 20);
  std::vector<int64_t> expected = Tokenizer(tokenizer_).encode(text, SpecialTokens::kAsText);
  expected.push_back(257);
  TokenizeOptions options;
  options.threads = 2;
  EXPECT_TRUE(run({folder_.write("a.txt", text)}, options) == expected);
  EXPECT_EQ(std::ranges::count_if(early_reports_, [](const auto& p) { return p.documents == 0 && p.tokens > 0; }), 0);
}

// The separator begins at each of its lengths before what is read at once, and holds places where a text may be cut.
// Only just before it are there others.
TEST_F(Tokenize, SeparatorsAcrossPieces) {
  const Tokenizer tokenizer(tokenizer_);
  TokenizeOptions options;
  options.separator = "a b\n= b\n\nab";
  options.threads = 2;
  for (size_t before = 0; before <= options.separator.size() + 1; ++before) {
    std::string text;
    while (text.size() < (1u << 20) - 100) text += "b\t";
    while (text.size() < (1u << 20) - before) text += text.size() % 5 == 0 ? ' ' : 'b';
    text += options.separator + "b " + options.separator;
    text += options.separator.substr(0, options.separator.size() - 1);
    std::vector<int64_t> expected, starts;
    for (size_t at = 0; at < text.size();) {
      const size_t found = text.find(options.separator, at);
      const size_t end = found == text.npos ? text.size() : found + options.separator.size();
      starts.push_back(static_cast<int64_t>(expected.size()));
      tokenizer.encode(std::string_view(text).substr(at, end - at), SpecialTokens::kAsText, expected);
      expected.push_back(257);
      at = end;
    }
    ASSERT_EQ(starts.size(), 3u);
    EXPECT_TRUE(run({folder_.write("a.txt", text)}, options) == expected) << before;
    EXPECT_EQ(starts_, starts);
  }
}

TEST_F(Tokenize, AnInvalidByteIsNamedByItsPlaceInTheDocument) {
  std::string text = "b\f" + long_text(4u << 20);
  const size_t place = text.size();
  text += "\xFF" + long_text(1u << 20) + "\xFE";
  const fs::path file = folder_.write("a.txt", text);
  TokenizeOptions options;
  options.separator = "\f";
  for (options.threads = 1; options.threads <= 3; ++options.threads) {
    EXPECT_EQ(error_of([&] { run({file}, options); }),
              fmt::format("{}: document 2: {}: text to encode must be valid UTF-8, byte {} (0xff) is not",
                          file.string(), tokenizer_.string(), place - 2));
  }
}

// The first error is named, whichever thread meets one first.
TEST_F(Tokenize, ErrorsComeInOrder) {
  const std::string line = "{\"text\": \"ab\"}\n", bad = "{\"text\": \"ab\"\n", empty = "\n";
  std::string text = line + empty + line;
  const std::string lengthy = "{\"text\": \"" + std::string(1u << 20, 'b');
  TokenizeOptions options;
  options.threads = 3;
  EXPECT_THAT(error_of([&] { run({folder_.write("a.jsonl", text + bad + lengthy)}, options); }),
              HasSubstr("a.jsonl: line 4: is not valid JSON"));
  EXPECT_THAT(error_of([&] { run({folder_.write("a.jsonl", text + lengthy + "\n" + bad)}, options); }),
              HasSubstr("a.jsonl: line 4: is not valid JSON"));
  EXPECT_THAT(error_of([&] { run({folder_.write("a.jsonl", text + lengthy + "\"}\n\n" + bad)}, options); }),
              HasSubstr("a.jsonl: line 6: is not valid JSON"));
}

TEST_F(Tokenize, APartOfARunBeforeBecomesTheTokenFile) {
  const fs::path one = folder_.write("one.txt", "ab"), two = folder_.write("two.txt", "\xFF");
  run({folder_.write("old.txt", "b")});
  EXPECT_NE(error_of([&] { run({one, two}); }), "no error");
  EXPECT_EQ(TokenFile(folder_ / "out/tokens.bin").size(), 2);  // the older one is there still
  EXPECT_EQ(text_of(run({one})), "ab<|endoftext|>");
  EXPECT_TRUE(reports_[0].kept);
  EXPECT_FALSE(fs::exists(folder_ / "out/parts"));
  // A run that is killed while the part gets its new name: what is left of it is no part.
  for (const char* suffix : {"", ".docs"}) {
    EXPECT_NE(error_of([&] { run({one, two}); }), "no error");
    fs::remove(folder_ / "out/tokens.bin.json");
    fs::rename((folder_ / "out/parts/00000.bin").string() + suffix, (folder_ / "out/tokens.bin").string() + suffix);
    EXPECT_EQ(text_of(run({one})), "ab<|endoftext|>");
    EXPECT_FALSE(reports_[0].kept);
    EXPECT_FALSE(fs::exists(folder_ / "out/parts"));
  }
}

TEST_F(Tokenize, AFolderInTheTokenFilesPlaceLosesNothing) {
  const fs::path one = folder_.write("one.txt", "ab");
  fs::create_directories(folder_ / "out/tokens.bin.docs");
  EXPECT_THAT(error_of([&] { run({one}); }), HasSubstr("must be a file or not there, is a folder"));
  fs::remove(folder_ / "out/tokens.bin.docs");
  EXPECT_EQ(text_of(run({one})), "ab<|endoftext|>");
  EXPECT_TRUE(reports_[0].kept);
}

TEST_F(Tokenize, WhatIsMissingIsNamed) {
  EXPECT_THAT(error_of([&] { run({folder_ / "no.txt"}); }), HasSubstr("no.txt: there is no such file"));
  EXPECT_THAT(error_of([&] { tokenize_files({tokenizer_}, folder_ / "no.json", folder_ / "out", {}); }),
              HasSubstr("no.json"));
}

}  // namespace
}  // namespace adder::data
