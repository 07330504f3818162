#include "cli/text_tokens.h"

#include "adder/core/check.h"
#include "adder/core/options_io.h"
#include "adder/data/stream_decoder.h"
#include "adder/tasks/make_task.h"

namespace adder::cli {
namespace fs = std::filesystem;

fs::path tokenizer_of(const models::LoadedModel& loaded) {
  std::vector<fs::path> folders = {loaded.path};
  if (loaded.state.contains("step")) folders.push_back(fs::absolute(loaded.path).lexically_normal().parent_path());
  if (const auto& config = loaded.state["config"]; config.contains("task")) {
    tasks::TaskOptions task;
    core::from_json(task, config["task"], loaded.path.string() + ": config.task");
    const std::string& token_file = task.language_model.token_file;
    if (task.name == "language_model" && !token_file.empty()) folders.push_back(fs::path(token_file).parent_path());
  }
  for (const fs::path& folder : folders) {
    std::error_code error;
    if (fs::is_regular_file(folder / "tokenizer.json", error)) return folder / "tokenizer.json";
  }
  return {};
}

void check_bytes(const models::LoadedModel& loaded) {
  constexpr int64_t kBytes = 256;
  const int64_t vocab = loaded.model->options().vocab_size;
  ADDER_CHECK(
      vocab >= kBytes,
      "{}: text goes in and out as bytes (there is no tokenizer.json; --tokenizer names one), so the model must "
      "have at least 256 tokens, got {}",
      loaded.path.string(), vocab);
  if (vocab == kBytes) return;
  const auto& config = loaded.state["config"];
  bool bytes = loaded.state.contains("step");  // a checkpoint of ours, of which nothing else is known
  if (config.contains("task")) {
    tasks::TaskOptions task;
    core::from_json(task, config["task"], loaded.path.string() + ": config.task");
    bytes = task.name == "language_model" && task.language_model.token_file.empty();
  }
  ADDER_CHECK(
      bytes,
      "{}: text goes in and out as bytes (there is no tokenizer.json; --tokenizer names one), but the model's {} "
      "tokens were trained as others",
      loaded.path.string(), vocab);
}

TextTokens::TextTokens(const models::LoadedModel& loaded, const std::string& tokenizer) {
  const fs::path path = tokenizer.empty() ? tokenizer_of(loaded) : fs::path(tokenizer);
  if (path.empty()) {
    check_bytes(loaded);
    return;
  }
  tokenizer_.emplace(path);
  const int64_t vocab = loaded.model->options().vocab_size;
  ADDER_CHECK(tokenizer_->vocab_size() <= vocab, "{}: has ids up to {}, the model has {} tokens", path.string(),
              tokenizer_->vocab_size() - 1, vocab);
}

std::vector<int64_t> TextTokens::encode(std::string_view text) const {
  if (tokenizer_) return tokenizer_->encode(text, data::SpecialTokens::kAllowed);
  std::vector<int64_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

int64_t TextTokens::start_token() const {
  return tokenizer_ ? tokenizer_->end_of_text() : '\n';
}

std::optional<int64_t> TextTokens::stop_token() const {
  return tokenizer_ ? tokenizer_->find("<|endoftext|>") : std::nullopt;
}

std::function<std::string(std::optional<int64_t>)> TextTokens::decoder() const {
  if (!tokenizer_)
    return
        [](std::optional<int64_t> token) { return token ? std::string(1, static_cast<char>(*token)) : std::string(); };
  return [decoder = data::StreamDecoder(*tokenizer_, true)](std::optional<int64_t> token) mutable {
    return token ? decoder.push(*token) : decoder.finish();
  };
}

}  // namespace adder::cli
