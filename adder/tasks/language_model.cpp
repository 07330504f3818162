#include "adder/tasks/language_model.h"

#include <filesystem>

#include "adder/core/check.h"
#include "adder/core/hash.h"
#include "adder/core/random.h"
#include "adder/data/sampler.h"
#include "adder/data/token_file.h"

namespace adder::tasks {
namespace {

// Tells whether a position belongs to this text: its length and a hash of blocks spread over it, of all of a short one.
std::string fingerprint(const data::TokenStream& stream) {
  constexpr int64_t kBlock = 64, kBlocks = 1024;
  core::Hasher hasher;
  std::vector<int64_t> tokens(kBlock);
  const int64_t blocks = std::min(kBlocks, (stream.size() + kBlock - 1) / kBlock);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t begin = stream.size() * i / blocks;
    const int64_t count = std::min(kBlock, stream.size() - begin);
    stream.copy(begin, count, tokens.data());
    hasher.update(std::as_bytes(std::span(tokens.data(), static_cast<size_t>(count))));
  }
  return fmt::format("{} tokens, {}", stream.size(), hasher.hex());
}

class WindowSource : public BatchSource {
 public:
  WindowSource(std::unique_ptr<data::Sampler> sampler, std::string text)
      : sampler_(std::move(sampler)), text_(std::move(text)) {}
  std::optional<TaskBatch> next() override {
    std::optional<data::Batch> batch = sampler_->next();
    if (!batch) return std::nullopt;
    nlohmann::json after = batch->after;
    after["text"] = text_;
    return TaskBatch{batch->input, batch->target, batch->starts, batch->fresh, std::move(after)};
  }
  void seek(const nlohmann::json& position) override {
    const std::string text = position.value("text", std::string());
    ADDER_CHECK(text == text_, "a run is continued with the text that it began with: it was {}, now it is {}", text,
                text_);
    sampler_->seek(position.get<data::Position>());
  }

 private:
  std::unique_ptr<data::Sampler> sampler_;
  std::string text_;
};

std::shared_ptr<const data::TokenStream> open_stream(const LanguageModelOptions& o) {
  ADDER_CHECK(
      o.files.empty() != o.token_file.empty(),
      "task.language_model: give either files (text, as bytes) or token_file, got {} files and token_file \"{}\"",
      o.files.size(), o.token_file);
  if (!o.token_file.empty()) return std::make_shared<data::TokenFile>(o.token_file);
  const std::vector<std::filesystem::path> paths(o.files.begin(), o.files.end());
  return std::make_shared<data::ByteStream>(data::read_text(paths, o.document_separator));
}

class LanguageModel : public Task {
 public:
  explicit LanguageModel(const LanguageModelOptions& options)
      : options_(options),
        stream_(open_stream(options)),
        split_(data::split_at_end(stream_->size(), options.validation_fraction)) {}

  int64_t vocab_size() const override { return stream_->vocab_size(); }
  bool bytes() const override { return options_.token_file.empty(); }
  int64_t length() const override { return options_.length; }

  std::unique_ptr<BatchSource> training(int64_t batch, uint64_t seed) const override {
    const data::WindowOptions window{batch, options_.length, options_.reset_at_documents};
    const uint64_t derived = core::derive_seed(seed, "language_model.training");
    std::unique_ptr<data::Sampler> sampler;
    if (options_.windows == "random")
      sampler = std::make_unique<data::RandomWindows>(stream_, split_.train, window, derived);
    else if (options_.windows == "shuffled")
      sampler = std::make_unique<data::ShuffledWindows>(stream_, split_.train, window, derived);
    else
      sampler = std::make_unique<data::SequentialLanes>(stream_, split_.train, window);
    return std::make_unique<WindowSource>(std::move(sampler), fingerprint(*stream_));
  }

  std::unique_ptr<BatchSource> evaluation(int64_t batch, bool carried) const override {
    ADDER_CHECK(split_.validation.size() >= 2,
                "task.language_model: nothing is held out to evaluate on: {} tokens with validation_fraction {}",
                split_.validation.size(), options_.validation_fraction);
    const int64_t length = options_.evaluation_length > 0 ? options_.evaluation_length : options_.length;
    const data::WindowOptions window{carried ? 1 : batch, length, options_.reset_at_documents};
    if (carried)
      return std::make_unique<WindowSource>(
          std::make_unique<data::OrderedEvaluation>(stream_, split_.validation, window), "");
    return std::make_unique<WindowSource>(std::make_unique<data::EvaluationWindows>(stream_, split_.validation, window),
                                          "");
  }

 private:
  LanguageModelOptions options_;
  std::shared_ptr<const data::TokenStream> stream_;
  data::Split split_;
};

}  // namespace

void LanguageModelOptions::visit(core::FieldVisitor& v) {
  v.field("files", files, "text files (.txt or any other, .xz, .gz, .zst), read as bytes");
  v.field("token_file", token_file, "a file of tokens instead of text files");
  v.field("document_separator", document_separator, "text after which a new document starts inside a file");
  v.field("validation_fraction", validation_fraction, "share at the end that is held out", {.min = 0, .max = 0.999});
  v.field("length", length, "tokens of a training window", {.min = 1, .max = 1 << 30});
  v.field("evaluation_length", evaluation_length, "tokens of an evaluation window; 0: as in training",
          {.min = 0, .max = 1 << 30});
  v.choice("windows", windows,
           "training windows: anywhere, each once an epoch, or in order with the state carried over",
           {"random", "shuffled", "carried"});
  v.field("reset_at_documents", reset_at_documents, "the state starts from zero at each document");
}

std::unique_ptr<Task> make_language_model(const LanguageModelOptions& options) {
  return std::make_unique<LanguageModel>(options);
}

}  // namespace adder::tasks
