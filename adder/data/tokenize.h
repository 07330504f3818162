#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace adder::data {

// How texts are read.
struct TokenizeOptions {
  std::string separator;       // text files: a document ends with it; empty: with the file
  std::string field = "text";  // .jsonl: the key of each line's text; a line is a document
  bool end_of_text = true;     // each document ends with <|endoftext|>
  int64_t threads = 1;         // that tokenize at once, beside one that reads and one that writes
};

// How far tokenize_files() is.
struct TokenizeProgress {
  std::filesystem::path file;  // that is being read
  size_t number;               // of it, from 1
  size_t files;                // how many there are
  int64_t bytes;               // read of this file so far
  int64_t tokens;              // made of them
  int64_t documents;           // made of them
  double seconds;              // since the beginning of the file
  bool done;                   // with this file
  bool kept;                   // its part is from a run before
};

// Makes a token file (token_file.h) of texts: folder/tokens.bin and what belongs to it, and a copy of the tokenizer.
// Files are .txt or .jsonl (any other name is text), also compressed (.xz, .gz, .zst), read in pieces. A long document
// is cut where its tokens stay the same (Tokenizer::cut_before), so that all threads work on it; one that cannot be
// cut, or a line of .jsonl, is taken into memory whole. The result is the same with any number of threads. Each file
// becomes a part in folder/parts first, which a run after one that was cut off keeps where file, tokenizer and options
// are the same. Errors name the file and the document. Returns the number of tokens.
int64_t tokenize_files(const std::vector<std::filesystem::path>& files, const std::filesystem::path& tokenizer,
                       const std::filesystem::path& folder, const TokenizeOptions& options,
                       const std::function<void(const TokenizeProgress&)>& report = {});

}  // namespace adder::data
