#include "adder/data/tokenize.h"

#include <chrono>
#include <exception>
#include <nlohmann/json.hpp>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/hash.h"
#include "adder/core/json_text.h"
#include "adder/data/compressed_file.h"
#include "adder/data/token_file.h"
#include "adder/data/tokenizer.h"

namespace adder::data {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBatchBytes = size_t{4} << 20;  // a thread

// The name without what says how it is compressed.
fs::path plain_name(const fs::path& path) {
  const auto suffix = path.extension();
  return suffix == ".xz" || suffix == ".gz" || suffix == ".zst" ? path.stem() : path;
}

// Cuts a text that comes in pieces into documents.
class Documents {
 public:
  Documents(const fs::path& path, const TokenizeOptions& options, std::function<void(std::string)> take)
      : path_(path),
        options_(options),
        lines_(plain_name(path).extension() == ".jsonl"),
        border_(lines_ ? "\n" : options.separator),
        take_(std::move(take)) {}

  void append(std::string_view piece) {
    // A border may begin in what was there before.
    size_t from = held_.size() < border_.size() ? 0 : held_.size() - border_.size() + 1;
    held_.append(piece);
    if (border_.empty()) return;
    size_t begin = 0;
    for (size_t at; (at = held_.find(border_, from)) != std::string::npos; from = begin) {
      document(held_.substr(begin, at + border_.size() - begin));
      begin = at + border_.size();
    }
    held_.erase(0, begin);
  }
  void finish() {
    if (!held_.empty()) document(std::move(held_));
    held_.clear();
  }

 private:
  void document(std::string text) {
    ++number_;
    if (!lines_) return take_(std::move(text));
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) return;
    const std::string where = fmt::format("{}: line {}", path_.string(), number_);
    const nlohmann::ordered_json line = core::parse_json(text, where);
    ADDER_CHECK(line.is_object() && line.contains(options_.field) && line[options_.field].is_string(),
                "{}: must be an object with a text '{}'", where, options_.field);
    take_(line[options_.field].get<std::string>());
  }

  const fs::path& path_;
  const TokenizeOptions& options_;
  bool lines_;
  std::string border_;
  std::function<void(std::string)> take_;
  std::string held_;
  int64_t number_ = 0;
};

// Documents that become tokens by all threads at once, in order.
class Batch {
 public:
  Batch(const fs::path& path, const Tokenizer& tokenizer, const TokenizeOptions& options, TokenWriter& writer)
      : path_(path), tokenizer_(tokenizer), options_(options), writer_(writer) {
    if (options.end_of_text) end_.push_back(tokenizer.end_of_text());
  }

  void add(std::string text) {
    bytes_ += text.size();
    texts_.push_back(std::move(text));
    if (bytes_ >= kBatchBytes * static_cast<size_t>(options_.threads)) flush();
  }
  void flush() {
    std::vector<std::vector<int64_t>> encoded(texts_.size());
    std::vector<std::exception_ptr> faults(texts_.size());
    const auto count = static_cast<int64_t>(texts_.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(static_cast<int>(options_.threads))
    for (int64_t i = 0; i < count; ++i) {
      const auto at = static_cast<size_t>(i);
      try {
        encoded[at] = tokenizer_.encode(texts_[at], SpecialTokens::kAsText);
      } catch (...) {
        faults[at] = std::current_exception();
      }
    }
    for (size_t i = 0; i < texts_.size(); ++i, ++documents) {
      try {
        if (faults[i]) std::rethrow_exception(faults[i]);
      } catch (const Error& error) {
        fail("{}: document {}: {}", path_.string(), documents + 1, error.what());
      }
      if (encoded[i].empty()) continue;
      writer_.begin_document();
      writer_.append(encoded[i]);
      writer_.append(end_);
      tokens += static_cast<int64_t>(encoded[i].size() + end_.size());
    }
    texts_.clear();
    bytes_ = 0;
  }

  int64_t tokens = 0, documents = 0;

 private:
  const fs::path& path_;
  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  TokenWriter& writer_;
  std::vector<int64_t> end_;
  std::vector<std::string> texts_;
  size_t bytes_ = 0;
};

// What a part was made of: another source, tokenizer or option makes another part.
std::string source_of(const fs::path& file, const std::string& tokenizer_hash, const TokenizeOptions& options) {
  const nlohmann::ordered_json json = {{"file", fs::absolute(file).lexically_normal().string()},
                                       {"bytes", fs::file_size(file)},
                                       {"changed", fs::last_write_time(file).time_since_epoch().count()},
                                       {"tokenizer", tokenizer_hash},
                                       {"separator", options.separator},
                                       {"field", options.field},
                                       {"end_of_text", options.end_of_text}};
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string contents(const fs::path& path) {
  const core::MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

void copy_tokens(const TokenFile& from, TokenWriter& to) {
  const std::span<const int64_t> documents = from.documents();
  std::vector<int64_t> tokens;
  constexpr int64_t kAtOnce = 1 << 16;
  for (size_t i = 0; i < documents.size(); ++i) {
    const int64_t end = i + 1 < documents.size() ? documents[i + 1] : from.size();
    to.begin_document();
    for (int64_t at = documents[i]; at < end; at += kAtOnce) {
      tokens.resize(static_cast<size_t>(std::min(kAtOnce, end - at)));
      from.copy(at, static_cast<int64_t>(tokens.size()), tokens.data());
      to.append(tokens);
    }
  }
}

}  // namespace

int64_t tokenize_files(const std::vector<fs::path>& files, const fs::path& tokenizer_path, const fs::path& folder,
                       const TokenizeOptions& options, const std::function<void(const TokenizeProgress&)>& report) {
  ADDER_CHECK(!files.empty(), "tokenize_files: needs at least one file");
  ADDER_CHECK(options.threads >= 1, "tokenize_files: threads must be at least 1, got {}", options.threads);
  for (const fs::path& file : files) ADDER_CHECK(is_there(file), "{}: there is no such file", file.string());
  const Tokenizer tokenizer(tokenizer_path);
  const std::string tokenizer_text = contents(tokenizer_path);
  const std::string hash = core::hash_bytes(std::as_bytes(std::span(tokenizer_text)));
  const fs::path parts = folder / "parts";
  fs::create_directories(parts);

  for (size_t i = 0; i < files.size(); ++i) {
    const fs::path part = parts / fmt::format("{:05}.bin", i), made_of = part.string() + ".source";
    const std::string source = source_of(files[i], hash, options);
    TokenizeProgress progress{files[i], i + 1, files.size(), 0, 0, 0, 0, true, true};
    if (is_there(made_of) && is_there(part.string() + ".json") && contents(made_of) == source) {
      const TokenFile kept(part);
      progress.tokens = kept.size(), progress.documents = static_cast<int64_t>(kept.documents().size());
      if (report) report(progress);
      continue;
    }
    std::error_code ignored;
    fs::remove(made_of, ignored);
    const auto start = std::chrono::steady_clock::now();
    progress.done = progress.kept = false;
    write_token_file(part, tokenizer.vocab_size(), [&](TokenWriter& writer) {
      Batch batch(files[i], tokenizer, options, writer);
      Documents documents(files[i], options, [&](std::string text) { batch.add(std::move(text)); });
      const auto tell = [&] {
        progress.tokens = batch.tokens, progress.documents = batch.documents;
        progress.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (report) report(progress);
      };
      read_file(files[i], [&](std::string_view piece) {
        progress.bytes += static_cast<int64_t>(piece.size());
        const int64_t before = batch.tokens;
        documents.append(piece);
        if (batch.tokens != before) tell();
      });
      documents.finish();
      batch.flush();
      progress.done = true;
      tell();
    });
    core::write_file_atomically(made_of, source);
  }

  int64_t count = 0;
  write_token_file(folder / "tokens.bin", tokenizer.vocab_size(), [&](TokenWriter& writer) {
    for (size_t i = 0; i < files.size(); ++i) {
      const TokenFile part(parts / fmt::format("{:05}.bin", i));
      copy_tokens(part, writer);
      count += part.size();
    }
  });
  core::write_file_atomically(folder / "tokenizer.json", tokenizer_text);
  fs::remove_all(parts);
  return count;
}

}  // namespace adder::data
