#include "adder/data/text_blocks.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "adder/core/check.h"
#include "adder/core/json_text.h"
#include "adder/data/compressed_file.h"

namespace adder::data {
namespace fs = std::filesystem;
namespace {

constexpr size_t kPieceBytes = size_t{1} << 18;  // about as many

// The name without what says how it is compressed.
fs::path plain_name(const fs::path& path) {
  const auto suffix = path.extension();
  return suffix == ".xz" || suffix == ".gz" || suffix == ".zst" ? path.stem() : path;
}

// Makes blocks of a text that comes in pieces.
class BlockReader {
 public:
  BlockReader(const fs::path& path, const TokenizeOptions& options, const Tokenizer& tokenizer,
              const std::function<void(TextBlock&)>& give)
      : path_(path),
        options_(options),
        tokenizer_(tokenizer),
        give_(give),
        lines_(plain_name(path).extension() == ".jsonl"),
        border_(lines_ ? "\n" : options.separator) {}

  void append(std::string_view bytes) {
    block_.bytes_read += static_cast<int64_t>(bytes.size());
    // A border may begin in what was there before.
    const size_t before_end = border_.empty() ? 0 : border_.size() - 1;
    size_t from = held_.size() - std::min(held_.size(), before_end);
    held_.append(bytes);
    const std::string_view held = held_;
    size_t begin = 0;
    while (!border_.empty()) {
      const size_t at = held.find(border_, from);
      if (at == held.npos) break;
      from = at + border_.size();
      end_line_or_document(held.substr(begin, from - begin));
      begin = from;
    }
    // A cut must not lie in a border of which only the beginning is there yet.
    if (!lines_) begin += give_pieces(held.substr(begin), before_end);
    held_.erase(0, begin);
  }
  void finish() {
    if (!held_.empty()) end_line_or_document(held_);
    give_block();
  }
  void give_block() {
    const int64_t bytes_read = block_.bytes_read;
    give_(block_);
    block_.text.clear();
    block_.pieces.clear();
    block_.bytes_read = bytes_read;
  }

 private:
  void end_line_or_document(std::string_view text) {
    if (!lines_) return end_document(text);
    ++line_;
    if (text.find_first_not_of(" \t\r\n") == text.npos) return;
    if (text.size() <= kPieceBytes) return add(text, true, line_);
    give_block();  // so that errors keep their order
    end_document(text_of_line(text, path_, line_, options_));
  }
  void end_document(std::string_view text) { add(text.substr(give_pieces(text, 0)), true); }

  // Gives of a document's text what is enough for pieces, but `keep` bytes at its end. Returns how much that was.
  size_t give_pieces(std::string_view text, size_t keep) {
    size_t given = 0;
    while (text.size() - given > kPieceBytes + keep) {
      const std::string_view rest = text.substr(given);
      std::optional<size_t> cut = tokenizer_.cut_before(rest, kPieceBytes);
      if (!cut) cut = tokenizer_.cut_before(rest, rest.size() - keep);
      if (!cut) break;
      add(rest.substr(0, *cut), false);
      given += *cut;
    }
    return given;
  }

  void add(std::string_view text, bool last, int64_t line = 0) {
    const size_t begin = block_.text.size();
    block_.text.append(text);
    block_.pieces.push_back({begin, block_.text.size(), documents_ + 1, position_, last, line});
    position_ = last ? 0 : position_ + text.size();
    if (last) ++documents_;
    if (block_.text.size() >= kPieceBytes) give_block();
  }

  const fs::path& path_;
  const TokenizeOptions& options_;
  const Tokenizer& tokenizer_;
  const std::function<void(TextBlock&)>& give_;
  const bool lines_;
  const std::string border_;
  std::string held_;  // of a document or line whose end has not come yet
  TextBlock block_;
  int64_t line_ = 0, documents_ = 0;
  size_t position_ = 0;  // in the document
};

}  // namespace

void read_text_blocks(const fs::path& path, const TokenizeOptions& options, const Tokenizer& tokenizer,
                      const std::function<void(TextBlock&)>& give) {
  BlockReader reader(path, options, tokenizer, give);
  try {
    read_file(path, [&](std::string_view bytes) { reader.append(bytes); });
  } catch (...) {
    reader.give_block();  // what is wrong in the text before comes first
    throw;
  }
  reader.finish();
}

std::string text_of_line(std::string_view line, const fs::path& path, int64_t number, const TokenizeOptions& options) {
  const std::string where = fmt::format("{}: line {}", path.string(), number);
  const nlohmann::ordered_json json = core::parse_json(line, where);
  ADDER_CHECK(json.is_object() && json.contains(options.field) && json[options.field].is_string(),
              "{}: must be an object with a text '{}'", where, options.field);
  return json[options.field].get<std::string>();
}

}  // namespace adder::data
