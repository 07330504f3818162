#include "adder/data/tokenize.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adder/data/token_file.h"
#include "adder/data/tokenizer.h"
#include "tests/data/temporary_folder.h"

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
    const int64_t count =
        tokenize_files(files, tokenizer_, folder_ / "out", options, [this](const TokenizeProgress& p) {
          if (p.done) reports_.push_back(p);
        });
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
  std::vector<TokenizeProgress> reports_;
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

TEST_F(Tokenize, WhatIsMissingIsNamed) {
  EXPECT_THAT(error_of([&] { run({folder_ / "no.txt"}); }), HasSubstr("no.txt: there is no such file"));
  EXPECT_THAT(error_of([&] { tokenize_files({tokenizer_}, folder_ / "no.json", folder_ / "out", {}); }),
              HasSubstr("no.json"));
}

}  // namespace
}  // namespace adder::data
