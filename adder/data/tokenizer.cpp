#include "adder/data/tokenizer.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <unordered_map>

#include "adder/core/check.h"
#include "adder/data/bpe.h"
#include "adder/data/byte_level.h"
#include "adder/data/pre_tokenizer.h"
#include "adder/data/tokenizer_file.h"
#include "adder/data/unicode.h"
#include "adder/data/word_cache.h"

namespace adder::data {
namespace {

// What one call of encode() needs for itself.
struct Workspace {
  WordCache cache;
  Bpe::Scratch scratch;
};

// Keeps workspaces between calls: as many as there were calls at the same time.
class Workspaces {
 public:
  std::unique_ptr<Workspace> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
      free_.reserve(++made_);  // so that giving one back cannot fail
      return std::make_unique<Workspace>();
    }
    auto workspace = std::move(free_.back());
    free_.pop_back();
    return workspace;
  }
  void give_back(std::unique_ptr<Workspace> workspace) noexcept {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(workspace));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<Workspace>> free_;
  size_t made_ = 0;
};

class WorkspaceLease {
 public:
  explicit WorkspaceLease(Workspaces& from) : from_(from), workspace_(from.take()) {}
  ~WorkspaceLease() { from_.give_back(std::move(workspace_)); }
  WorkspaceLease(const WorkspaceLease&) = delete;
  WorkspaceLease& operator=(const WorkspaceLease&) = delete;
  Workspace& operator*() const { return *workspace_; }

 private:
  Workspaces& from_;
  std::unique_ptr<Workspace> workspace_;
};

// Special tokens come first, as the first of two tokens that look the same counts.
AddedTokenFinder finder(const std::vector<AddedToken>& tokens, bool normalized, bool nfc) {
  std::vector<AddedToken> chosen;
  for (const bool special : {true, false})
    for (AddedToken token : tokens) {
      if (token.normalized != normalized || token.special != special) continue;
      std::string storage;
      if (normalized && nfc) token.content = std::string(to_nfc(token.content, storage));
      chosen.push_back(std::move(token));
    }
  return AddedTokenFinder(std::move(chosen));
}

// May text be cut at text[at], at > 0? Neither words nor form C reach across a space behind another character. With a
// prefix, a newline would get one.
bool can_cut_at(std::string_view text, size_t at, bool add_prefix_space) {
  if (text[at] != ' ' && (text[at] != '\n' || add_prefix_space)) return false;
  size_t begin = at - 1;  // of the code point before
  while (begin > 0 && at - begin < 4 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
  const Utf8Piece piece = utf8_piece_at(text, begin);
  return piece.state == Utf8Piece::State::kWhole && begin + piece.length == at &&
         kind_of(code_point_at(text, begin).code) != CodePointKind::kSpace;
}

// Is every such place one where the tokens fall apart? Added tokens may hold one, or look across. lstrip only takes
// spaces, and no other character before them.
bool can_cut(const TokenizerParts& parts) {
  if (!parts.split_words) return false;
  return std::ranges::none_of(parts.added_tokens, [&](const AddedToken& token) {
    std::string storage;
    const std::string_view content = token.normalized && parts.nfc ? to_nfc(token.content, storage) : token.content;
    bool across = token.single_word || token.rstrip;
    for (size_t at = 1; at < content.size(); ++at) across |= can_cut_at(content, at, parts.add_prefix_space);
    return across;
  });
}

}  // namespace

struct Tokenizer::Content {
  explicit Content(const std::filesystem::path& file) : Content(file, read_tokenizer_file(file)) {}
  Content(const std::filesystem::path& file, TokenizerParts read)
      : path(file),
        parts(std::move(read)),
        bpe(parts.byte_ids, parts.rules),
        raw_tokens(finder(parts.added_tokens, false, parts.nfc)),
        normalized_tokens(finder(parts.added_tokens, true, parts.nfc)),
        cuts(can_cut(parts)) {
    bytes.reserve(parts.contents.size());
    for (size_t id = 0; id < parts.contents.size(); ++id) {
      bytes.push_back(bytes_of_token(parts.contents[id]));
      ids.emplace(parts.contents[id], static_cast<int64_t>(id));
    }
    special.resize(parts.contents.size());
    for (const AddedToken& token : parts.added_tokens) {
      const auto id = static_cast<size_t>(token.id);
      special[id] = token.special;
      std::string storage;  // what is found in normalized text is decoded to that
      if (token.normalized && parts.nfc) bytes[id] = bytes_of_token(to_nfc(token.content, storage));
    }
  }

  bool has(int64_t id) const {
    ADDER_CHECK(id >= 0, "{}: an id must be at least 0, got {}", path.string(), id);
    return id < static_cast<int64_t>(parts.contents.size());
  }
  void encode_word(std::string_view word, size_t room, Workspace& workspace, std::vector<int64_t>& out) const;
  // Text without added tokens, normalized.
  void encode_plain(std::string_view text, Workspace& workspace, std::vector<int64_t>& out) const;

  std::filesystem::path path;
  TokenizerParts parts;
  Bpe bpe;
  AddedTokenFinder raw_tokens, normalized_tokens;
  bool cuts;
  std::vector<std::string> bytes;
  std::vector<bool> special;
  std::unordered_map<std::string_view, int64_t> ids;  // by content
  mutable Workspaces workspaces;
};

void Tokenizer::Content::encode_word(std::string_view word, size_t room, Workspace& workspace,
                                     std::vector<int64_t>& out) const {
  if (word.size() > WordCache::kMaxBytes) return bpe.encode(word, workspace.scratch, out);
  const WordCache::Key key(word, room);
  if (const WordCache::Entry* entry = workspace.cache.find(key)) {
    for (uint8_t i = 0; i < entry->count; ++i) out.push_back(entry->ids[i]);
    return;
  }
  const size_t before = out.size();
  bpe.encode(word, workspace.scratch, out);
  const size_t count = out.size() - before;
  if (count <= WordCache::kMaxTokens) workspace.cache.put(key, out.data() + before, count);
}

void Tokenizer::Content::encode_plain(std::string_view text, Workspace& workspace, std::vector<int64_t>& out) const {
  std::string prefixed;
  if (parts.add_prefix_space && text.front() != ' ') text = prefixed.append(" ").append(text);
  for (size_t at = 0; at < text.size();) {
    const size_t end = parts.split_words ? word_end(text, at) : text.size();
    encode_word(text.substr(at, end - at), text.size() - at, workspace, out);
    at = end;
  }
}

Tokenizer::Tokenizer(const std::filesystem::path& path) : content_(std::make_unique<Content>(path)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int64_t> Tokenizer::encode(std::string_view text, SpecialTokens special) const {
  std::vector<int64_t> out;
  out.reserve(text.size() / 3 + 8);
  encode(text, special, out);
  return out;
}

void Tokenizer::encode(std::string_view text, SpecialTokens special, std::vector<int64_t>& out, size_t position) const {
  const Content& content = *content_;
  ADDER_CHECK(text.size() < std::numeric_limits<int32_t>::max(), "{}: text to encode must have less than 2 GiB, got {}",
              content.path.string(), text.size());
  const size_t valid = valid_utf8_bytes(text);
  ADDER_CHECK(valid == text.size(), "{}: text to encode must be valid UTF-8, byte {} (0x{:02x}) is not",
              content.path.string(), position + valid, static_cast<uint8_t>(text[valid]));
  const WorkspaceLease workspace(content.workspaces);
  const auto take_token = [&](int32_t id) { out.push_back(id); };
  const auto take_normalized = [&](std::string_view piece) { content.encode_plain(piece, *workspace, out); };
  const auto take_raw = [&](std::string_view piece) {
    std::string storage;
    if (content.parts.nfc) piece = to_nfc(piece, storage);
    content.normalized_tokens.split(piece, special, take_normalized, take_token);
  };
  content.raw_tokens.split(text, special, take_raw, take_token);
}

std::optional<size_t> Tokenizer::cut_before(std::string_view text, size_t at) const {
  constexpr size_t kFarthest = size_t{1} << 16;
  if (!content_->cuts || text.empty()) return std::nullopt;
  at = std::min(at, text.size() - 1);
  for (const size_t end = at > kFarthest ? at - kFarthest : 0; at > end; --at)
    if (can_cut_at(text, at, content_->parts.add_prefix_space)) return at;
  return std::nullopt;
}

std::string Tokenizer::decode(std::span<const int64_t> ids, bool skip_special) const {
  std::string raw;
  for (const int64_t id : ids)
    if (!skip_special || !is_special(id)) raw += bytes(id);
  if (valid_utf8_bytes(raw) == raw.size()) return raw;
  std::string text;
  if (append_lossy(raw, text) < raw.size()) append_utf8(kReplacement, text);
  return text;
}

int64_t Tokenizer::vocab_size() const {
  return static_cast<int64_t>(content_->parts.contents.size());
}

std::string_view Tokenizer::content(int64_t id) const {
  return content_->has(id) ? std::string_view(content_->parts.contents[static_cast<size_t>(id)]) : std::string_view();
}

std::string_view Tokenizer::bytes(int64_t id) const {
  return content_->has(id) ? std::string_view(content_->bytes[static_cast<size_t>(id)]) : std::string_view();
}

bool Tokenizer::is_special(int64_t id) const {
  return content_->has(id) && content_->special[static_cast<size_t>(id)];
}

std::optional<int64_t> Tokenizer::find(std::string_view content) const {
  const auto found = content_->ids.find(content);
  return found == content_->ids.end() ? std::nullopt : std::optional(found->second);
}

int64_t Tokenizer::end_of_text() const {
  const auto id = find("<|endoftext|>");
  ADDER_CHECK(id, "{}: has no token <|endoftext|>", content_->path.string());
  return *id;
}

}  // namespace adder::data
