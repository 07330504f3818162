#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "adder/data/added_tokens.h"
#include "adder/data/bpe.h"

namespace adder::data {

// What a tokenizer of the byte-level BPE family is made of.
struct TokenizerParts {
  std::vector<std::string> contents;    // of each id, as the vocabulary writes it; no two are equal
  std::array<int32_t, 256> byte_ids{};  // the token of each byte; -1 for bytes that UTF-8 never holds
  std::vector<Bpe::Rule> rules;
  std::vector<AddedToken> added_tokens;
  bool nfc = false;               // text is brought into Unicode's form C
  bool add_prefix_space = false;  // in front of text that begins without one
  bool split_words = true;        // by kGpt2Pattern
};

// Reads a `tokenizer.json` as the Python package tokenizers writes it. What is damaged, or would need something that is
// not supported, is an error that names the file, the key and what that holds.
TokenizerParts read_tokenizer_file(const std::filesystem::path& path);

}  // namespace adder::data
