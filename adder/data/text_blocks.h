#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "adder/data/tokenize.h"
#include "adder/data/tokenizer.h"

namespace adder::data {

// Some of a file's text on its way to the tokenizer: short documents, or a part of a long one.
struct TextBlock {
  struct Piece {
    size_t begin = 0, end = 0;  // of it in `text`
    int64_t document = 0;       // that it belongs to, from 1
    size_t position = 0;        // where it begins in the document's text
    bool last = false;          // the document ends with it
    int64_t line = 0;           // of a .jsonl file, from 1: `text` holds the line, not yet its text; 0 for text
  };
  std::string text;
  std::vector<Piece> pieces;
  int64_t bytes_read = 0;  // of the file, decompressed, up to here

  std::string_view text_of(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }
};

// Reads a file, text or .jsonl, in blocks. Documents end as the options say; a long one is cut where that does not
// change its tokens. `give` takes the block and leaves another one, of any content.
void read_text_blocks(const std::filesystem::path& path, const TokenizeOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(TextBlock&)>& give);

// The text that a line of a .jsonl file holds. Errors name file and line.
std::string text_of_line(std::string_view line, const std::filesystem::path& path, int64_t number,
                         const TokenizeOptions& options);

}  // namespace adder::data
