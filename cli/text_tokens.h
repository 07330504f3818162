#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adder/data/tokenizer.h"
#include "adder/models/load.h"

namespace adder::cli {

// How text becomes tokens for a model and back: by a tokenizer.json, or as bytes.
class TextTokens {
 public:
  // `tokenizer`: a tokenizer.json, or empty: the one beside the model's weights, and bytes where there is none. Throws
  // where the model's tokens are neither.
  TextTokens(const models::LoadedModel& loaded, const std::string& tokenizer);

  std::vector<int64_t> encode(std::string_view text) const;
  // Begins a text, and ends one: <|endoftext|>, or a line's end and nothing.
  int64_t start_token() const;
  std::optional<int64_t> stop_token() const;
  bool bytes() const { return !tokenizer_; }

  // Decodes a row of tokens as they come: push(token) gives the whole characters, push({}) what is left at the end.
  std::function<std::string(std::optional<int64_t>)> decoder() const;

 private:
  std::optional<data::Tokenizer> tokenizer_;
};

// The tokenizer.json of a model: beside its weights, in the folder of its run, or beside the token file that the run
// was trained on. Empty where there is none.
std::filesystem::path tokenizer_of(const models::LoadedModel& loaded);

// What tells that a model's tokens are bytes; throws where they were trained as others.
void check_bytes(const models::LoadedModel& loaded);

}  // namespace adder::cli
