#include "adder/data/text.h"

#include <array>

#include "adder/data/compressed_file.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  return bytes;
}

// "line 0 of the text\n" to "line 19 of the text\n", compressed by xz, gzip -9 and zstd -19 --check.
std::string lines() {
  std::string text;
  for (int i = 0; i < 20; ++i) text += "line " + std::to_string(i) + " of the text\n";
  return text;
}

struct Format {
  const char* suffix;
  const char* name;
  std::string compressed;
};

std::array<Format, 3> formats() {
  return {
      {{".xz", "xz",
        from_hex("fd377a585a000004e6d6b4460200210116000000742fe5a3e0018500495d00361a4a1f08a026034d069df8b28a224518b3"
                 "7212d52d71ef659fb62fe1571dc24f10fe196fea5c980d9f06d88aaf1dade561eeb8c9bf78c5e45b37ea0501cf163b30da"
                 "d2644db291420000000034ae52568d8248320001658603000000e8a07fb7b1c467fb020000000004595a")},
       {".gz", "gzip",
        from_hex("1f8b08000000000002036dcfbb0d80301004d19c2aae04963f051961c982e402ca478468277dd14cab57893eee23f22c91e5"
                 "c9ae7d24a7c169749a9c66a7c56975da9c7648a57ce8170c080e040b8207c184e042b0a1ffc70b7b5dbdc586010000")},
       {".zst", "zstd",
        from_hex("28b52ffd6486004d0200e2820a11b06b0c009d633194a4c67164cb720c7425e8b3b94c1e8bf347c71432440ef6e9a2aac5e4"
                 "30a0b6c50214a810a0dd7f03c0636b101ae119313d06ebdc394221591ebcdd9d0286b0b6d0")}}};
}

TEST(ReadFile, PlainFilesOfAnyName) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_file(folder.write("a.txt", "abc")), "abc");
  EXPECT_EQ(read_file(folder.write("no suffix", std::string("\0\xff\r\n", 4))), std::string("\0\xff\r\n", 4));
}

TEST(ReadFile, CompressedFiles) {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    const std::string name = std::string("text") + format.suffix;
    EXPECT_EQ(read_file(folder.write(name, format.compressed)), lines()) << format.name;
    EXPECT_EQ(read_file(folder.write(name, format.compressed + format.compressed)), lines() + lines()) << format.name;
  }
}

TEST(ReadFile, EveryCutIsAnError) {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    for (size_t length = 0; length < format.compressed.size(); ++length) {
      const auto path = folder.write(std::string("cut") + format.suffix, format.compressed.substr(0, length));
      EXPECT_EQ(error_of([&] { read_file(path); }), path.string() + ": ends too early, after byte " +
                                                        std::to_string(length) +
                                                        ": the compressed data is not complete");
    }
    const auto second_cut = format.compressed + format.compressed.substr(0, format.compressed.size() - 1);
    EXPECT_THAT(error_of([&] { read_file(folder.write(std::string("cut") + format.suffix, second_cut)); }),
                HasSubstr("ends too early"));
  }
}

TEST(ReadFile, NoFlippedByteGivesOtherText) {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    int errors = 0;
    for (size_t i = 0; i < format.compressed.size(); ++i) {
      std::string flipped = format.compressed;
      flipped[i] = static_cast<char>(flipped[i] ^ 0x15);
      const auto path = folder.write(std::string("flipped") + format.suffix, flipped);
      std::string text = lines();  // a header byte that says nothing of the text (gzip's time) may differ
      const std::string error = error_of([&] { text = read_file(path); });
      EXPECT_EQ(text, lines()) << format.name << " byte " << i;
      if (error == "no error") continue;
      ++errors;
      EXPECT_THAT(error, StartsWith(path.string()));
      EXPECT_THAT(error, ::testing::AnyOf(HasSubstr("ends too early, after byte "),
                                          HasSubstr(std::string("not valid ") + format.name + " data at byte ")));
    }
    EXPECT_GE(errors, static_cast<int>(format.compressed.size()) - 8) << format.name;
  }
}

TEST(ReadFile, GarbageBehindTheDataIsAnError) {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    const auto path = folder.write(std::string("more") + format.suffix, format.compressed + "garbage behind the data");
    EXPECT_THAT(error_of([&] { read_file(path); }), AllOf(StartsWith(path.string()), HasSubstr("not valid ")))
        << format.name;
  }
}

TEST(ReadFile, OtherFormatThanTheSuffixSays) {
  const TemporaryFolder folder;
  for (const Format& format : formats()) {
    const auto path = folder.write(std::string("plain") + format.suffix, lines());
    EXPECT_THAT(
        error_of([&] { read_file(path); }),
        AllOf(StartsWith(path.string()), HasSubstr(std::string("not valid ") + format.name + " data at byte ")));
  }
}

TEST(ReadFile, MissingEmptyAndFolders) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { read_file(folder / "none.txt"); }),
            "cannot open '" + (folder / "none.txt").string() + "': No such file or directory");
  EXPECT_EQ(error_of([&] { read_file(folder.write("empty.txt", "")); }),
            (folder / "empty.txt").string() + ": holds no data, at least one byte is needed");
  const std::string empty_gzip = from_hex("1f8b080000000000000303000000000000000000");
  EXPECT_THAT(error_of([&] { read_file(folder.write("empty.gz", empty_gzip)); }), HasSubstr("holds no data"));
  EXPECT_EQ(error_of([&] { read_file(folder.path()); }),
            "cannot read '" + folder.path().string() + "' at byte 0: Is a directory");
}

// Three million bytes without pattern, so that all inner buffers are crossed.
std::string long_text() {
  std::string text(3'000'001, '\0');
  uint32_t state = 1;
  for (char& c : text) c = static_cast<char>((state = state * 1664525 + 1013904223) >> 24);
  return text;
}

std::string little_endian(uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(value >> 8 * i);
  return out;
}

std::string stored_gzip(std::string_view text) {
  uint32_t crc = ~0u;
  for (const char c : text) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0u);
  }
  std::string out = from_hex("1f8b0800000000000003");
  for (size_t at = 0; at < text.size(); at += 65535) {
    const auto block = text.substr(at, 65535);
    out += at + block.size() == text.size() ? '\1' : '\0';
    out += little_endian(block.size(), 2) + little_endian(~block.size(), 2);
    out += block;
  }
  return out + little_endian(~crc, 4) + little_endian(text.size(), 4);
}

std::string stored_zstd(std::string_view text) {
  std::string out = from_hex("28b52ffd0050");  // no checksum, a window of 1 MiB
  constexpr size_t kBlock = 128 * 1024;
  for (size_t at = 0; at < text.size(); at += kBlock) {
    const auto block = text.substr(at, kBlock);
    const bool last = at + block.size() == text.size();
    out += little_endian(block.size() << 3 | (last ? 1 : 0), 3);
    out += block;
  }
  return out;
}

TEST(ReadFile, LongFiles) {
  const TemporaryFolder folder;
  const std::string text = long_text();
  EXPECT_TRUE(read_file(folder.write("long.bin", text)) == text);
  EXPECT_TRUE(read_file(folder.write("long.gz", stored_gzip(text))) == text);
  EXPECT_TRUE(read_file(folder.write("long.zst", stored_zstd(text))) == text);
  std::string damaged = stored_gzip(text);
  damaged[1'500'000] = static_cast<char>(damaged[1'500'000] ^ 1);
  EXPECT_THAT(error_of([&] { read_file(folder.write("damaged.gz", damaged)); }),
              EndsWith("not valid gzip data at byte " + std::to_string(damaged.size() - 4) + ": incorrect data check"));
}

TEST(ReadText, FilesAreDocuments) {
  const TemporaryFolder folder;
  const Text text =
      read_text({folder.write("a", "abc"), folder.write("b", "de"), folder.write("c.gz", formats()[1].compressed)});
  EXPECT_EQ(text.bytes, "abcde" + lines());
  EXPECT_THAT(text.documents, ElementsAre(0, 3, 5));
  ASSERT_EQ(text.files.size(), 3u);
  EXPECT_EQ(text.files[1].path, folder / "b");
  EXPECT_EQ(text.files[1].begin, 3);
}

TEST(ReadText, SeparatorsEndDocuments) {
  const TemporaryFolder folder;
  const auto a = folder.write("a", "\fone\ftwo\f\fthree\f");
  const auto b = folder.write("b", "four\f5");
  const Text text = read_text({a, b}, "\f");
  EXPECT_EQ(text.bytes, "\fone\ftwo\f\fthree\ffour\f5");
  EXPECT_THAT(text.documents, ElementsAre(0, 1, 5, 9, 10, 16, 21));
  EXPECT_THAT(read_text({folder.write("c", "xENDENDyEN"), folder.write("d", "Dz")}, "END").documents,
              ElementsAre(0, 4, 7, 10));
}

TEST(ReadText, ErrorsNameTheFile) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([] { read_text({}); }), "text: at least one file is needed, got none");
  EXPECT_THAT(error_of([&] { read_text({folder.write("a", "x"), folder.write("b", "")}); }),
              StartsWith((folder / "b").string() + ": holds no data"));
}

TEST(ReadText, Tinyshakespeare) {
  const auto path = shared_data("text/tinyshakespeare.txt.xz");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const Text text = read_text({path});
  EXPECT_EQ(text.bytes.size(), 1'115'394u);
  EXPECT_THAT(text.bytes, StartsWith("First Citizen:\nBefore we proceed any further, hear me speak.\n"));
}

}  // namespace
}  // namespace adder::data
