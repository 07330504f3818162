#include "adder/data/token_file.h"

#include <algorithm>
#include <bit>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"

namespace adder::data {
namespace {

namespace fs = std::filesystem;
static_assert(std::endian::native == std::endian::little, "token files are mapped as they lie, little-endian");

constexpr const char* kFormat = "adder-tokens";
constexpr int64_t kVersion = 1;
constexpr int64_t kMaxUint16Vocab = int64_t{1} << 16;
constexpr int64_t kMaxVocab = int64_t{1} << 32;
constexpr int64_t kMaxCount = int64_t{1} << 56;

fs::path with_suffix(const fs::path& path, const char* suffix) {
  return path.string() + suffix;
}

core::MappedFile map(const fs::path& path, int64_t count, int64_t element_bytes, const char* elements) {
  core::MappedFile file(path);
  const auto bytes = static_cast<int64_t>(file.bytes().size());
  ADDER_CHECK(bytes == count * element_bytes, "{}: must hold {} {} = {} bytes, got {}", path.string(), count, elements,
              count * element_bytes, bytes);
  return file;
}

template <typename T>
std::span<const T> elements_of(const core::MappedFile& file) {
  return {reinterpret_cast<const T*>(file.bytes().data()), file.bytes().size() / sizeof(T)};
}

struct Sidecar {
  bool wide = false;
  int64_t vocab_size = 0;
  int64_t count = 0;
  int64_t documents = 0;
};

int64_t whole_number(const nlohmann::ordered_json& json, const char* key, int64_t min, int64_t max,
                     const fs::path& path) {
  const auto found = json.find(key);
  ADDER_CHECK(found != json.end(), "{}: must have the key '{}'", path.string(), key);
  const bool fits = found->is_number_unsigned() && found->get<uint64_t>() <= static_cast<uint64_t>(max);
  ADDER_CHECK(fits && found->get<int64_t>() >= min, "{}: '{}' must be a whole number from {} to {}, got {}",
              path.string(), key, min, max, found->dump());
  return found->get<int64_t>();
}

Sidecar read_sidecar(const fs::path& path) {
  const core::MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const nlohmann::ordered_json json = core::parse_json(text, path.string());
  const auto format = json.is_object() ? json.value("format", nlohmann::ordered_json()) : nlohmann::ordered_json();
  ADDER_CHECK(format == kFormat, "{}: 'format' must be \"{}\", got {}", path.string(), kFormat,
              json.is_object() ? format.dump() : json.type_name());
  const int64_t version = whole_number(json, "version", 1, INT64_MAX, path);
  ADDER_CHECK(version == kVersion, "{}: version {} was written by a newer program, this one reads version {}",
              path.string(), version, kVersion);
  const auto dtype = json.value("dtype", nlohmann::ordered_json());
  ADDER_CHECK(dtype == "uint16" || dtype == "uint32", "{}: 'dtype' must be \"uint16\" or \"uint32\", got {}",
              path.string(), dtype.dump());
  Sidecar sidecar;
  sidecar.wide = dtype == "uint32";
  sidecar.vocab_size = whole_number(json, "vocab_size", 1, sidecar.wide ? kMaxVocab : kMaxUint16Vocab, path);
  sidecar.count = whole_number(json, "count", 1, kMaxCount, path);
  sidecar.documents = whole_number(json, "documents", 0, sidecar.count, path);
  return sidecar;
}

void check_documents(std::span<const int64_t> documents, int64_t count, const fs::path& path) {
  ADDER_CHECK(documents[0] == 0, "{}: the first document must start at 0, got {}", path.string(), documents[0]);
  const auto fall = std::ranges::adjacent_find(documents, std::ranges::greater_equal());
  if (fall != documents.end()) {
    fail("{}: document {} must start after {}, got {}", path.string(), fall - documents.begin() + 1, *fall,
         *(fall + 1));
  }
  ADDER_CHECK(documents.back() < count, "{}: document {} must start before the end of the tokens, {}, got {}",
              path.string(), documents.size() - 1, count, documents.back());
}

template <typename Token>
void widen(const fs::path& path, std::span<const Token> tokens, int64_t vocab_size, int64_t begin, int64_t* out) {
  int64_t highest = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    out[i] = tokens[i];
    highest = std::max(highest, out[i]);
  }
  if (highest < vocab_size) [[likely]]
    return;
  const auto bad = std::ranges::find_if(tokens, [&](Token token) { return token >= vocab_size; });
  fail("{}: token {} is {}, outside the vocabulary of {}", path.string(), begin + (bad - tokens.begin()), *bad,
       vocab_size);
}

}  // namespace

struct TokenFile::Content {
  explicit Content(const fs::path& file)
      : path(file),
        sidecar(read_sidecar(with_suffix(file, ".json"))),
        tokens(map(file, sidecar.count, sidecar.wide ? 4 : 2, sidecar.wide ? "uint32 tokens" : "uint16 tokens")) {
    if (sidecar.documents == 0) return;
    const fs::path docs = with_suffix(file, ".docs");
    document_file = map(docs, sidecar.documents, 8, "int64 document starts");
    documents = elements_of<int64_t>(*document_file);
    check_documents(documents, sidecar.count, docs);
  }

  static constexpr int64_t kOneDocument[] = {0};
  fs::path path;
  Sidecar sidecar;
  core::MappedFile tokens;
  std::optional<core::MappedFile> document_file;
  std::span<const int64_t> documents = kOneDocument;
};

TokenFile::TokenFile(const fs::path& path) : content_(std::make_unique<Content>(path)) {}
TokenFile::~TokenFile() = default;
int64_t TokenFile::size() const {
  return content_->sidecar.count;
}
int64_t TokenFile::vocab_size() const {
  return content_->sidecar.vocab_size;
}

void TokenFile::copy(int64_t begin, int64_t count, int64_t* out) const {
  const Content& content = *content_;
  ADDER_CHECK(begin >= 0 && count >= 0 && begin <= size() - count,
              "{}: tokens [{}, {} + {}) are outside the stream of {}", content.path.string(), begin, begin, count,
              size());
  if (content.sidecar.wide) {
    widen(content.path, elements_of<uint32_t>(content.tokens).subspan(begin, count), vocab_size(), begin, out);
  } else {
    widen(content.path, elements_of<uint16_t>(content.tokens).subspan(begin, count), vocab_size(), begin, out);
  }
}

std::span<const int64_t> TokenFile::documents() const {
  return content_->documents;
}

void TokenFile::append_to(TokenWriter& writer) const {
  const auto append = [&]<typename Token>(std::span<const Token> tokens) {
    for (size_t i = 0; i < documents().size(); ++i) {
      const int64_t begin = documents()[i], end = i + 1 < documents().size() ? documents()[i + 1] : size();
      writer.begin_document();
      writer.append(tokens.subspan(begin, end - begin));
    }
  };
  if (content_->sidecar.wide) {
    append(elements_of<uint32_t>(content_->tokens));
  } else {
    append(elements_of<uint16_t>(content_->tokens));
  }
}

namespace {

// Elements on their way into a file.
template <typename T>
class Buffer {
 public:
  explicit Buffer(core::FileWriter& file) : file_(file), elements_(kElements) {}
  template <typename From>
  void append(std::span<const From> values) {
    while (!values.empty()) {
      const size_t count = std::min(values.size(), kElements - used_);
      for (size_t i = 0; i < count; ++i) elements_[used_ + i] = static_cast<T>(values[i]);
      used_ += count;
      values = values.subspan(count);
      if (used_ == kElements) flush();
    }
  }
  void flush() {
    file_.write(std::as_bytes(std::span<const T>(elements_).first(used_)));
    used_ = 0;
  }

 private:
  static constexpr size_t kElements = size_t{1} << 16;
  core::FileWriter& file_;
  std::vector<T> elements_;
  size_t used_ = 0;
};

template <typename Token>
class TokenWriterOf : public TokenWriter {
 public:
  TokenWriterOf(const fs::path& path, int64_t vocab_size, core::FileWriter& tokens, core::FileWriter& documents)
      : path_(path), vocab_size_(vocab_size), tokens_(tokens), documents_(documents) {}

  void begin_document() override { starts_document_ = true; }
  void append(std::span<const int64_t> tokens) override { take(tokens); }
  void append(std::span<const uint16_t> tokens) override { take(tokens); }
  void append(std::span<const uint32_t> tokens) override { take(tokens); }

  Sidecar finish() {
    ADDER_CHECK(count_ > 0, "{}: a token file needs at least one token, got none", path_.string());
    tokens_.flush();
    documents_.flush();
    return {sizeof(Token) == 4, vocab_size_, count_, document_count_};
  }

 private:
  template <typename From>
  void take(std::span<const From> tokens) {
    if (tokens.empty()) return;
    const auto outside = [this](From token) {
      return static_cast<uint64_t>(token) >= static_cast<uint64_t>(vocab_size_);
    };
    bool any = false;
    for (const From token : tokens) any |= outside(token);
    if (any) [[unlikely]] {
      const auto bad = std::ranges::find_if(tokens, outside);
      fail("{}: token {} is {}, outside the vocabulary of {}", path_.string(), count_ + (bad - tokens.begin()), *bad,
           vocab_size_);
    }
    if (std::exchange(starts_document_, false)) {
      documents_.append(std::span<const int64_t>(&count_, 1));
      ++document_count_;
    }
    tokens_.append(tokens);
    count_ += static_cast<int64_t>(tokens.size());
  }

  fs::path path_;
  int64_t vocab_size_;
  Buffer<Token> tokens_;
  Buffer<int64_t> documents_;
  int64_t count_ = 0;
  int64_t document_count_ = 0;
  bool starts_document_ = true;
};

template <typename Token>
Sidecar write_tokens(const fs::path& path, int64_t vocab_size, core::FileWriter& tokens, core::FileWriter& documents,
                     const std::function<void(TokenWriter&)>& fill) {
  TokenWriterOf<Token> writer(path, vocab_size, tokens, documents);
  fill(writer);
  return writer.finish();
}

}  // namespace

void write_token_file(const fs::path& path, int64_t vocab_size, const std::function<void(TokenWriter&)>& fill) {
  ADDER_CHECK(vocab_size >= 1 && vocab_size <= kMaxVocab, "{}: vocab_size must be from 1 to {}, got {}", path.string(),
              kMaxVocab, vocab_size);
  const fs::path sidecar_path = with_suffix(path, ".json");
  core::PendingFile tokens(path), documents(with_suffix(path, ".docs")), sidecar_file(sidecar_path);
  const auto write = vocab_size <= kMaxUint16Vocab ? &write_tokens<uint16_t> : &write_tokens<uint32_t>;
  const Sidecar sidecar = write(path, vocab_size, tokens.writer(), documents.writer(), fill);
  const nlohmann::ordered_json json = {{"format", kFormat},
                                       {"version", kVersion},
                                       {"dtype", sidecar.wide ? "uint32" : "uint16"},
                                       {"vocab_size", sidecar.vocab_size},
                                       {"count", sidecar.count},
                                       {"documents", sidecar.documents}};
  sidecar_file.writer().write(json.dump(2) + "\n");
  for (core::PendingFile* file : {&tokens, &documents, &sidecar_file}) file->finish();
  // An older sidecar must never describe the new tokens, so there is none until they are there.
  fs::remove(sidecar_path);
  for (core::PendingFile* file : {&tokens, &documents, &sidecar_file}) file->publish();
}

void move_token_file(const fs::path& from, const fs::path& to) {
  const Sidecar sidecar = read_sidecar(with_suffix(from, ".json"));
  const auto rename = [&](const char* suffix) {
    core::rename_file(with_suffix(from, suffix), with_suffix(to, suffix));
  };
  for (const char* suffix : {"", ".docs", ".json"})  // before anything is lost
    ADDER_CHECK(!fs::is_directory(with_suffix(to, suffix)), "{}: must be a file or not there, is a folder",
                with_suffix(to, suffix).string());
  // The sidecar goes first and comes last, here too.
  fs::remove(with_suffix(to, ".json"));
  rename("");
  if (sidecar.documents > 0) {
    rename(".docs");
  } else {
    fs::remove(with_suffix(to, ".docs"));
  }
  rename(".json");
}

}  // namespace adder::data
