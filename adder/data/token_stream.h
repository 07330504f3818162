#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "adder/data/text.h"

namespace adder::data {

// A long row of tokens in [0, vocab_size), cut into documents. Whatever is behind it, reading is thread-safe.
class TokenStream {
 public:
  virtual ~TokenStream() = default;
  virtual int64_t size() const = 0;        // in tokens
  virtual int64_t vocab_size() const = 0;  // all tokens are below
  // The tokens [begin, begin + count). A place outside the stream or a token outside the vocabulary is an error that
  // names file and place.
  virtual void copy(int64_t begin, int64_t count, int64_t* out) const = 0;
  // Where each document starts; rising, the first is 0.
  virtual std::span<const int64_t> documents() const = 0;
};

// The bytes of text files as tokens. A byte outside the vocabulary is an error at construction.
class ByteStream : public TokenStream {
 public:
  // vocab_size: from 1 to 256.
  explicit ByteStream(Text text, int64_t vocab_size = 256);
  int64_t size() const override { return static_cast<int64_t>(text_.bytes.size()); }
  int64_t vocab_size() const override { return vocab_size_; }
  void copy(int64_t begin, int64_t count, int64_t* out) const override;
  std::span<const int64_t> documents() const override { return text_.documents; }

 private:
  Text text_;
  int64_t vocab_size_;
};

// A part [begin, end) of a stream.
struct Range {
  int64_t begin = 0;                            // the first token
  int64_t end = 0;                              // behind the last one
  int64_t size() const { return end - begin; }  // in tokens
  bool operator==(const Range&) const = default;
};

// A stream in two parts.
struct Split {
  Range train;       // the beginning
  Range validation;  // the end, held out; may be empty
};

// Holds out the end of `size` tokens: train is [0, floor(size * (1 - fraction))), validation the rest. The fraction,
// from 0 to below 1, counts with nine decimals, so that decimal fractions are exact.
Split split_at_end(int64_t size, double fraction);

}  // namespace adder::data
