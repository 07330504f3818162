#include "adder/data/token_file.h"

#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <vector>

#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using Tokens = std::vector<int64_t>;

std::filesystem::path write_tokens(const std::filesystem::path& path, int64_t vocab_size,
                                   const std::vector<Tokens>& documents) {
  write_token_file(path, vocab_size, [&](TokenWriter& writer) {
    for (const Tokens& document : documents) {
      writer.begin_document();
      writer.append(document);
    }
  });
  return path;
}

Tokens all_of(const TokenStream& stream) {
  Tokens out(stream.size());
  stream.copy(0, stream.size(), out.data());
  return out;
}

size_t files_in(const TemporaryFolder& folder) {
  return std::distance(std::filesystem::directory_iterator(folder.path()), std::filesystem::directory_iterator());
}

std::string slurp(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(TokenFile, RoundTripInBothWidths) {
  const TemporaryFolder folder;
  const TokenFile narrow(write_tokens(folder / "narrow.bin", 65536, {{1, 2, 65535}, {}, {0}, {7, 8}}));
  EXPECT_EQ(std::filesystem::file_size(folder / "narrow.bin"), 12u);
  EXPECT_EQ(narrow.size(), 6);
  EXPECT_EQ(narrow.vocab_size(), 65536);
  EXPECT_EQ(all_of(narrow), (Tokens{1, 2, 65535, 0, 7, 8}));
  EXPECT_THAT(narrow.documents(), ElementsAre(0, 3, 4));

  const TokenFile wide(write_tokens(folder / "wide.bin", int64_t{1} << 32, {{(int64_t{1} << 32) - 1, 5}}));
  EXPECT_EQ(std::filesystem::file_size(folder / "wide.bin"), 8u);
  EXPECT_EQ(all_of(wide), (Tokens{(int64_t{1} << 32) - 1, 5}));
  EXPECT_EQ(files_in(folder), 6u);
}

TEST(TokenFile, LongRowsAndManyDocuments) {
  const TemporaryFolder folder;
  Tokens expected;
  Tokens starts;
  write_token_file(folder / "t", 70'000, [&](TokenWriter& writer) {
    for (int64_t document = 0; document < 20'000; ++document) {
      Tokens row(document % 3 == 0 ? 1 : document % 5);
      std::iota(row.begin(), row.end(), document);
      if (!row.empty()) starts.push_back(static_cast<int64_t>(expected.size()));
      writer.begin_document();
      writer.append(row);
      expected.insert(expected.end(), row.begin(), row.end());
    }
    Tokens row(10'000);
    std::iota(row.begin(), row.end(), 60'000);
    writer.append(row);  // goes on in the last document
    expected.insert(expected.end(), row.begin(), row.end());
    EXPECT_FALSE(std::filesystem::exists(folder / "t"));
  });
  const TokenFile file(folder / "t");
  EXPECT_TRUE(all_of(file) == expected);
  EXPECT_TRUE(std::ranges::equal(file.documents(), starts));
}

TEST(TokenFile, WithoutDocumentsIsOneDocument) {
  const TemporaryFolder folder;
  folder.write("raw.bin", std::string("\1\0\2\0", 4));
  folder.write(
      "raw.bin.json",
      R"({"format": "adder-tokens", "version": 1, "dtype": "uint16", "vocab_size": 3, "count": 2, "documents": 0})");
  const TokenFile file(folder / "raw.bin");
  EXPECT_EQ(all_of(file), (Tokens{1, 2}));
  EXPECT_THAT(file.documents(), ElementsAre(0));
}

TEST(TokenFile, TokenOutsideTheVocabularyIsFoundWhenCopied) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2, 99, 3}});
  std::string sidecar = slurp(folder / "t.json");
  sidecar.replace(sidecar.find("100"), 3, "99");
  folder.write("t.json", sidecar);
  const TokenFile file(folder / "t");
  Tokens out(4);
  file.copy(0, 2, out.data());
  EXPECT_EQ(error_of([&] { file.copy(1, 3, out.data()); }),
            (folder / "t").string() + ": token 2 is 99, outside the vocabulary of 99");
  EXPECT_EQ(error_of([&] { file.copy(2, 3, out.data()); }),
            (folder / "t").string() + ": tokens [2, 2 + 3) are outside the stream of 4");
}

TEST(TokenFile, AppendedToFilesOfBothWidths) {
  const TemporaryFolder folder;
  Tokens many(150'000);
  std::iota(many.begin(), many.end(), 0);
  const TokenFile narrow(write_tokens(folder / "narrow", 65536, {{1, 65535}, {0}}));
  const TokenFile wide(write_tokens(folder / "wide", 200'000, {{7}, many, {8, 9}}));
  const auto join = [&](int64_t vocab_size, std::initializer_list<const TokenFile*> files) {
    write_token_file(folder / "all", vocab_size, [&](TokenWriter& writer) {
      for (const TokenFile* file : files) file->append_to(writer);
    });
    return TokenFile(folder / "all");
  };
  {
    const TokenFile all = join(200'000, {&narrow, &wide, &narrow});
    Tokens expected = {1, 65535, 0, 7};
    expected.insert(expected.end(), many.begin(), many.end());
    expected.insert(expected.end(), {8, 9, 1, 65535, 0});
    EXPECT_TRUE(all_of(all) == expected);
    EXPECT_THAT(all.documents(), ElementsAre(0, 2, 3, 4, 150'004, 150'006, 150'008));
  }
  EXPECT_EQ(all_of(join(65536, {&narrow, &narrow})), (Tokens{1, 65535, 0, 1, 65535, 0}));
  const std::string path = (folder / "all").string();
  EXPECT_EQ(error_of([&] { join(65535, {&narrow}); }), path + ": token 1 is 65535, outside the vocabulary of 65535");
  EXPECT_EQ(error_of([&] { join(65536, {&narrow, &wide}); }),
            path + ": token 65540 is 65536, outside the vocabulary of 65536");
  EXPECT_EQ(all_of(TokenFile(path)).size(), 6u);
}

TEST(TokenFile, Moved) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2}, {3}});
  write_tokens(folder / "old", 100, {{4}, {5}, {6}});
  move_token_file(folder / "t", folder / "old");
  const TokenFile moved(folder / "old");
  EXPECT_EQ(all_of(moved), (Tokens{1, 2, 3}));
  EXPECT_THAT(moved.documents(), ElementsAre(0, 2));
  EXPECT_EQ(files_in(folder), 3u);
  // One document without a file of starts.
  folder.write("raw", std::string("\7\0", 2));
  folder.write("raw.json", R"({"format": "adder-tokens", "version": 1, "dtype": "uint16", "vocab_size": 9, "count": 1,
                               "documents": 0})");
  move_token_file(folder / "raw", folder / "old");
  EXPECT_EQ(all_of(TokenFile(folder / "old")), (Tokens{7}));
  EXPECT_EQ(files_in(folder), 2u);
  EXPECT_THAT(error_of([&] { move_token_file(folder / "raw", folder / "old"); }), HasSubstr("raw.json"));
  EXPECT_EQ(all_of(TokenFile(folder / "old")), (Tokens{7}));
}

TEST(TokenFile, EveryCutOfEveryFileIsAnError) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2, 3}, {4}});
  for (const char* name : {"t", "t.docs", "t.json"}) {
    const std::string whole = slurp(folder / name);
    // Without its last byte, a newline, the sidecar is whole.
    const size_t end = name == std::string("t.json") ? whole.size() - 1 : whole.size();
    for (size_t length = 0; length < end; ++length) {
      folder.write(name, whole.substr(0, length));
      EXPECT_THAT(error_of([&] { TokenFile file(folder / "t"); }), StartsWith((folder / name).string() + ": "))
          << name << " " << length;
    }
    folder.write(name, whole);
  }
  folder.write("t", "1234567");
  EXPECT_EQ(error_of([&] { TokenFile file(folder / "t"); }),
            (folder / "t").string() + ": must hold 4 uint16 tokens = 8 bytes, got 7");
  folder.write("t", "123456789");
  EXPECT_THAT(error_of([&] { TokenFile file(folder / "t"); }), HasSubstr("got 9"));
}

TEST(TokenFile, MissingFiles) {
  const TemporaryFolder folder;
  for (const char* name : {"t", "t.docs", "t.json"}) {
    write_tokens(folder / "t", 100, {{1}});
    std::filesystem::remove(folder / name);
    EXPECT_THAT(error_of([&] { TokenFile file(folder / "t"); }),
                StartsWith("cannot open '" + (folder / name).string() + "': No such file or directory"));
  }
}

TEST(TokenFile, SidecarErrorsNameTheRule) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2, 3, 4}});
  const auto good = nlohmann::json::parse(slurp(folder / "t.json"));
  const auto error_with = [&](const char* key, const nlohmann::json& value) {
    auto json = good;
    json[key] = value;
    folder.write("t.json", json.dump());
    return error_of([&] { TokenFile file(folder / "t"); });
  };
  const std::string path = (folder / "t.json").string();
  EXPECT_EQ(error_with("format", "other"), path + ": 'format' must be \"adder-tokens\", got \"other\"");
  EXPECT_EQ(error_with("version", 2), path + ": version 2 was written by a newer program, this one reads version 1");
  EXPECT_EQ(error_with("dtype", "int8"), path + ": 'dtype' must be \"uint16\" or \"uint32\", got \"int8\"");
  EXPECT_EQ(error_with("vocab_size", 65537), path + ": 'vocab_size' must be a whole number from 1 to 65536, got 65537");
  EXPECT_EQ(error_with("count", 0), path + ": 'count' must be a whole number from 1 to 72057594037927936, got 0");
  EXPECT_THAT(error_with("count", -4), HasSubstr("got -4"));
  EXPECT_THAT(error_with("count", 4.0), HasSubstr("got 4.0"));
  EXPECT_THAT(error_with("count", "4"), HasSubstr("got \"4\""));
  EXPECT_THAT(error_with("count", ~uint64_t{0}), HasSubstr("got 18446744073709551615"));
  EXPECT_EQ(error_with("documents", 5), path + ": 'documents' must be a whole number from 0 to 4, got 5");
  folder.write("t.json", R"({"format": "adder-tokens"})");
  EXPECT_EQ(error_of([&] { TokenFile file(folder / "t"); }), path + ": must have the key 'version'");
  folder.write("t.json", "[1]");
  EXPECT_THAT(error_of([&] { TokenFile file(folder / "t"); }),
              HasSubstr("'format' must be \"adder-tokens\", got array"));
  folder.write("t.json", "{\"format\": x}");
  EXPECT_THAT(error_of([&] { TokenFile file(folder / "t"); }), StartsWith(path + ": is not valid JSON before byte 12"));
}

TEST(TokenFile, DocumentStartsMustRise) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2}, {3}, {4}});
  const auto error_with = [&](const Tokens& starts) {
    folder.write("t.docs", {reinterpret_cast<const char*>(starts.data()), starts.size() * 8});
    return error_of([&] { TokenFile file(folder / "t"); });
  };
  const std::string path = (folder / "t.docs").string();
  EXPECT_EQ(error_with({0, 2, 3}), "no error");
  EXPECT_EQ(error_with({1, 2, 3}), path + ": the first document must start at 0, got 1");
  EXPECT_EQ(error_with({0, 2, 2}), path + ": document 2 must start after 2, got 2");
  EXPECT_EQ(error_with({0, 2, 4}), path + ": document 2 must start before the end of the tokens, 4, got 4");
  EXPECT_EQ(error_with({0, -2, 3}), path + ": document 1 must start after 0, got -2");
}

TEST(TokenWriter, FailuresLeaveNothing) {
  const TemporaryFolder folder;
  const std::string path = (folder / "t").string();
  EXPECT_EQ(error_of([&] { write_tokens(path, 100, {{1, 2}, {3, 100}}); }),
            path + ": token 3 is 100, outside the vocabulary of 100");
  EXPECT_EQ(error_of([&] { write_tokens(path, 100, {{-1}}); }),
            path + ": token 0 is -1, outside the vocabulary of 100");
  EXPECT_EQ(error_of([&] { write_tokens(path, 100, {{}}); }),
            path + ": a token file needs at least one token, got none");
  EXPECT_EQ(error_of([&] { write_tokens(path, 0, {{1}}); }), path + ": vocab_size must be from 1 to 4294967296, got 0");
  EXPECT_THROW(write_tokens(path, (int64_t{1} << 32) + 1, {{1}}), Error);
  EXPECT_THROW(write_token_file(path, 100, [](TokenWriter&) { throw 3; }), int);
  EXPECT_EQ(files_in(folder), 0u);
  EXPECT_THAT(error_of([&] { write_tokens(folder / "no folder" / "t", 100, {{1}}); }),
              HasSubstr("No such file or directory"));
}

TEST(TokenWriter, ReplacesAnOlderFileWhole) {
  const TemporaryFolder folder;
  write_tokens(folder / "t", 100, {{1, 2}, {3}});
  const TokenFile old(folder / "t");
  EXPECT_THROW(write_tokens(folder / "t", 100, {{4, 100}}), Error);
  EXPECT_EQ(all_of(TokenFile(folder / "t")), (Tokens{1, 2, 3}));
  write_tokens(folder / "t", 100'000, {{99'999}});
  EXPECT_EQ(all_of(TokenFile(folder / "t")), (Tokens{99'999}));
  EXPECT_EQ(all_of(old), (Tokens{1, 2, 3}));
  EXPECT_EQ(files_in(folder), 3u);
}

TEST(TokenWriter, FullDiskIsAnErrorAndLeavesNothing) {
  const TemporaryFolder folder;
  rlimit before = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {100'000, before.rlim_max};
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = error_of([&] { write_tokens(folder / "t", 100, {Tokens(200'000, 1)}); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(
      error, AllOf(StartsWith("cannot write '" + (folder / "t").string() + "' at byte "), HasSubstr("File too large")));
  EXPECT_EQ(files_in(folder), 0u);
}

}  // namespace
}  // namespace adder::data
