#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include "adder/data/token_stream.h"

// A token file is three files that belong together:
//   tokens.bin        the tokens, uint16 (vocabularies up to 65,536) or uint32, little-endian
//   tokens.bin.docs   where each document starts, int64, little-endian
//   tokens.bin.json   {"format": "adder-tokens", "version": 1, "dtype": "uint16", "vocab_size": 50280, "count":
//   38000000, "documents": 30000}
// The last one is written last: without it the other two are no token file. "documents" 0 means one document and no
// .docs file.
namespace adder::data {

class TokenWriter;

// A token file, memory-mapped. Sizes and document starts are checked when it is opened, each token when it is copied.
class TokenFile : public TokenStream {
 public:
  // `path`: tokens.bin. Throws adder::Error, naming the file and what is wrong.
  explicit TokenFile(const std::filesystem::path& path);
  ~TokenFile() override;
  int64_t size() const override;
  int64_t vocab_size() const override;
  void copy(int64_t begin, int64_t count, int64_t* out) const override;
  std::span<const int64_t> documents() const override;
  // Hands all documents over to a file that is being written.
  void append_to(TokenWriter& writer) const;

 private:
  struct Content;
  std::unique_ptr<const Content> content_;
};

// Takes the tokens of a file that is being written, in order, in little memory.
class TokenWriter {
 public:
  virtual ~TokenWriter() = default;
  // The next token starts a document. The first document needs no call; one without tokens is not recorded.
  virtual void begin_document() = 0;
  // A token outside the vocabulary is an error.
  virtual void append(std::span<const int64_t> tokens) = 0;
  virtual void append(std::span<const uint16_t> tokens) = 0;  // the same, as a file holds them
  virtual void append(std::span<const uint32_t> tokens) = 0;  // the same
};

// Creates or replaces a token file with the tokens, at least one, that `fill` hands over; uint16 where the vocabulary
// allows. When `fill` or a write fails, nothing new is left behind and an older file stays.
void write_token_file(const std::filesystem::path& path, int64_t vocab_size,
                      const std::function<void(TokenWriter&)>& fill);

// Renames a token file, within one file system, and replaces one that is at `to`. A process killed on the way leaves it
// whole at `from` or at `to`, or a token file at neither.
void move_token_file(const std::filesystem::path& from, const std::filesystem::path& to);

}  // namespace adder::data
