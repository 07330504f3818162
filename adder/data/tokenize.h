#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace adder::data {

struct TokenizeOptions {
  std::string separator;       // text files: a document ends with it; empty: with the file
  std::string field = "text";  // .jsonl: the key of each line's text; a line is a document
  bool end_of_text = true;     // each document ends with <|endoftext|>
  int64_t threads = 1;
};

struct TokenizeProgress {
  std::filesystem::path file;
  size_t number, files;              // of the file, from 1
  int64_t bytes, tokens, documents;  // of this file so far
  double seconds;
  bool done, kept;  // kept: from a run before
};

// Makes a token file (token_file.h) of texts: folder/tokens.bin and what belongs to it, and a copy of the tokenizer.
// Files are .txt or .jsonl (any other name is text), also compressed (.xz, .gz, .zst), read in pieces; a document is
// taken into memory whole. Each file becomes a part in folder/parts first, which a run after one that was cut off keeps
// where file, tokenizer and options are the same. Errors name the file and the document. Returns the number of tokens.
int64_t tokenize_files(const std::vector<std::filesystem::path>& files, const std::filesystem::path& tokenizer,
                       const std::filesystem::path& folder, const TokenizeOptions& options,
                       const std::function<void(const TokenizeProgress&)>& report = {});

}  // namespace adder::data
