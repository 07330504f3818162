#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "adder/data/added_tokens.h"

namespace adder::data {

// A tokenizer of the byte-level BPE family (GPT-2, GPT-NeoX), read from its `tokenizer.json`. Its ids are those of the
// Python package tokenizers. Any number of threads may use one at once.
class Tokenizer {
 public:
  // Throws adder::Error where the file is damaged, or needs what is not supported.
  explicit Tokenizer(const std::filesystem::path& path);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  // The text must be valid UTF-8, of less than 2 GiB. With kAsText, special tokens in it are taken for ordinary text.
  std::vector<int64_t> encode(std::string_view text, SpecialTokens special) const;
  // The same, appended to `out`. `position`: where the text begins in a longer one, whose bytes errors count.
  void encode(std::string_view text, SpecialTokens special, std::vector<int64_t>& out, size_t position = 0) const;

  // A place i, 0 < i <= at, where text can be cut: encode() of text[0, i) and of the rest make the tokens of the whole,
  // whatever follows the text. It is the last one, a space or a newline behind another character, of at most 64 KiB
  // before `at`; nothing where there is none, as for a tokenizer whose words or added tokens reach across spaces.
  std::optional<size_t> cut_before(std::string_view text, size_t at) const;

  // Bytes that are no UTF-8 become U+FFFD, as one token may be only a part of a character: StreamDecoder decodes a
  // growing text. `skip_special` leaves special tokens out.
  std::string decode(std::span<const int64_t> ids, bool skip_special = false) const;

  // Ids are from 0 to vocab_size() - 1.
  int64_t vocab_size() const;
  // A token as the vocabulary writes it ("Ġthe"); empty where no token has the id, as models' vocabularies are padded.
  std::string_view content(int64_t id) const;
  // The bytes that decode() makes of it; empty where no token has the id.
  std::string_view bytes(int64_t id) const;
  bool is_special(int64_t id) const;  // <|endoftext|> and the like
  // The id of a token as the vocabulary writes it.
  std::optional<int64_t> find(std::string_view content) const;
  // The id of <|endoftext|>; an error where there is none.
  int64_t end_of_text() const;

 private:
  struct Content;
  std::unique_ptr<const Content> content_;
};

}  // namespace adder::data
