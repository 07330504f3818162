#include "adder/data/tokenize.h"

#include <sys/stat.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <utility>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/hash.h"
#include "adder/data/ordered_pipeline.h"
#include "adder/data/text_blocks.h"
#include "adder/data/token_file.h"
#include "adder/data/tokenizer.h"

namespace adder::data {
namespace fs = std::filesystem;
namespace {

constexpr size_t kMostBytes = size_t{64} << 20;  // of text on its way, or one document that cannot be cut

struct Job {
  TextBlock block;
  std::vector<int64_t> tokens;
  std::vector<size_t> ends;  // of each piece's tokens
};

// Makes tokens of the texts of one file, by many threads at once.
class FileTokenizer {
 public:
  FileTokenizer(const fs::path& path, const Tokenizer& tokenizer, const TokenizeOptions& options)
      : path_(path), tokenizer_(tokenizer), options_(options) {
    if (options.end_of_text) end_.push_back(tokenizer.end_of_text());
  }

  // `report` is called whenever some of the file has been written.
  void run(TokenWriter& writer, TokenizeProgress& progress, const std::function<void()>& report) const {
    const auto read = [&](const auto& give) {
      Job job;
      read_text_blocks(path_, options_, tokenizer_, [&](TextBlock& block) {
        std::swap(block, job.block);
        give(job);
        std::swap(block, job.block);
      });
    };
    const auto write = [&](Job& job) {
      append(job, writer, progress);
      report();
      if (job.block.text.capacity() > kMostBytes / 4) job = Job();  // the next one is not likely to be as large
    };
    const auto bytes = [](const Job& job) { return job.block.text.size(); };
    OrderedPipeline<Job>::run(options_.threads, 2 * options_.threads + 2,
                              {read, [this](Job& job) { encode(job); }, write, bytes}, kMostBytes);
  }

 private:
  void encode(Job& job) const {
    job.tokens.clear();
    job.ends.clear();
    std::string storage;
    for (const TextBlock::Piece& piece : job.block.pieces) {
      std::string_view text = job.block.text_of(piece);
      if (piece.line > 0) text = storage = text_of_line(text, path_, piece.line, options_);
      try {
        tokenizer_.encode(text, SpecialTokens::kAsText, job.tokens, piece.position);
      } catch (const Error& error) {
        fail("{}: document {}: {}", path_.string(), piece.document, error.what());
      }
      // Documents without a token are left out.
      if (piece.last && piece.position + text.size() > 0) job.tokens.insert(job.tokens.end(), end_.begin(), end_.end());
      job.ends.push_back(job.tokens.size());
    }
  }

  static void append(const Job& job, TokenWriter& writer, TokenizeProgress& progress) {
    size_t begin = 0;
    for (size_t i = 0; i < job.ends.size(); begin = job.ends[i++]) {
      const TextBlock::Piece& piece = job.block.pieces[i];
      if (piece.position == 0) writer.begin_document();
      writer.append(std::span(job.tokens).subspan(begin, job.ends[i] - begin));
      progress.documents += piece.last ? 1 : 0;
    }
    progress.tokens += static_cast<int64_t>(job.tokens.size());
    progress.bytes = job.block.bytes_read;
  }

  const fs::path& path_;
  const Tokenizer& tokenizer_;
  const TokenizeOptions& options_;
  std::vector<int64_t> end_;
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

bool same_file_system(const fs::path& a, const fs::path& b) {
  struct stat of_a {
  }, of_b{};
  return ::stat(a.c_str(), &of_a) == 0 && ::stat(b.c_str(), &of_b) == 0 && of_a.st_dev == of_b.st_dev;
}

fs::path source_path(const fs::path& part) {
  return part.string() + ".source";
}

// A run that is killed may leave some of a part.
bool is_complete(const fs::path& part, const std::string& source) {
  const fs::path made_of = source_path(part);
  return is_there(part) && is_there(part.string() + ".docs") && is_there(part.string() + ".json") &&
         is_there(made_of) && contents(made_of) == source;
}

void tokenize_file(const fs::path& part, const Tokenizer& tokenizer, const TokenizeOptions& options,
                   TokenizeProgress& progress, const std::function<void(const TokenizeProgress&)>& report) {
  const auto start = std::chrono::steady_clock::now();
  const auto tell = [&] {
    progress.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (report) report(progress);
  };
  write_token_file(part, tokenizer.vocab_size(), [&](TokenWriter& writer) {
    FileTokenizer(progress.file, tokenizer, options).run(writer, progress, tell);
    progress.done = true;
    tell();
  });
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
  const auto part_of = [&](size_t i) { return parts / fmt::format("{:05}.bin", i); };
  fs::create_directories(parts);

  int64_t count = 0;
  for (size_t i = 0; i < files.size(); ++i) {
    const fs::path part = part_of(i);
    const std::string source = source_of(files[i], hash, options);
    TokenizeProgress progress{files[i], i + 1, files.size(), 0, 0, 0, 0, true, true};
    if (is_complete(part, source)) {
      const TokenFile kept(part);
      progress.tokens = kept.size(), progress.documents = static_cast<int64_t>(kept.documents().size());
      if (report) report(progress);
    } else {
      std::error_code ignored;
      fs::remove(source_path(part), ignored);
      progress.done = progress.kept = false;
      tokenize_file(part, tokenizer, options, progress, report);
      core::write_file_atomically(source_path(part), source);
    }
    count += progress.tokens;
  }

  const fs::path tokens = folder / "tokens.bin";
  core::write_file_atomically(folder / "tokenizer.json", tokenizer_text);
  if (files.size() == 1 && same_file_system(parts, folder)) {
    move_token_file(part_of(0), tokens);
  } else {
    write_token_file(tokens, tokenizer.vocab_size(), [&](TokenWriter& writer) {
      for (size_t i = 0; i < files.size(); ++i) TokenFile(part_of(i)).append_to(writer);
    });
  }
  fs::remove_all(parts);
  return count;
}

}  // namespace adder::data
