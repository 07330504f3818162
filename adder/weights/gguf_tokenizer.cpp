#include "adder/weights/gguf_tokenizer.h"

#include <fmt/ranges.h>

#include <array>
#include <nlohmann/json.hpp>

#include "adder/core/check.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {
using nlohmann::json;
using TokenType = GgufTokenizer::TokenType;

constexpr const char* kWhat = "tokenizer.json";
constexpr const char* kEndOfText = "<|endoftext|>";

std::string shown(const json& value) {
  const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 200 ? text.substr(0, 200) + "..." : text;
}

// The member of an object; null where it is absent.
const json& member(const json& object, const char* key) {
  static const json none;
  const auto found = object.find(key);
  return found == object.end() ? none : *found;
}

std::string type_of(const json& part) {
  const json& type = part.is_object() ? member(part, "type") : part;
  return type.is_string() ? type.get<std::string>() : shown(part);
}

void check_off(const json& object, const char* key, const std::string& where) {
  const json& value = member(object, key);
  const bool off = value.is_null() || value == false || value == "";
  ADDER_CHECK(off, "{}: {}.{} must be off, since llama.cpp has no such thing; got {}", kWhat, where, key, shown(value));
}

void check_text_parts(const json& root) {
  ADDER_CHECK(root.is_object(), "{}: must be an object, got {}", kWhat, shown(root));
  const json& normalizer = member(root, "normalizer");
  ADDER_CHECK(normalizer.is_null() || type_of(normalizer) == "NFC", "{}: normalizer must be NFC or none, got {}", kWhat,
              type_of(normalizer));
  const json& cut = member(root, "pre_tokenizer");
  ADDER_CHECK(type_of(cut) == "ByteLevel", "{}: pre_tokenizer must be ByteLevel, got {}", kWhat, shown(cut));
  check_off(cut, "add_prefix_space", "pre_tokenizer");
  const json& use_regex = member(cut, "use_regex");
  ADDER_CHECK(use_regex.is_null() || use_regex == true, "{}: pre_tokenizer.use_regex must be true, got {}", kWhat,
              shown(use_regex));
  const json& after = member(root, "post_processor");
  ADDER_CHECK(after.is_null() || type_of(after) == "ByteLevel",
              "{}: post_processor must be ByteLevel or none, got {} (set add_bos instead)", kWhat, type_of(after));
}

int64_t id_of(const json& value, int64_t rows, const std::string& token) {
  ADDER_CHECK(value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(rows),
              "{}: token {}: its id must be a whole number below the model's {} rows, got {}", kWhat, shown_name(token),
              rows, shown(value));
  return value.get<int64_t>();
}

void place(GgufTokenizer& out, int64_t id, const std::string& token, TokenType type) {
  const auto at = static_cast<size_t>(id);
  ADDER_CHECK(out.tokens[at].empty() || out.tokens[at] == token, "{}: tokens {} and {} have the same id {}", kWhat,
              shown_name(out.tokens[at]), shown_name(token), id);
  ADDER_CHECK(!token.empty(), "{}: token {} is empty", kWhat, id);
  out.tokens[at] = token;
  out.types[at] = type;
}

void name_unused(GgufTokenizer& out) {
  for (size_t i = 0; i < out.tokens.size(); ++i)
    if (out.tokens[i].empty()) out.tokens[i] = fmt::format("[PAD{}]", i);
}

void add_vocabulary(GgufTokenizer& out, const json& model, int64_t rows) {
  const json& vocabulary = member(model, "vocab");
  ADDER_CHECK(vocabulary.is_object(), "{}: model.vocab must be an object, got {}", kWhat, vocabulary.type_name());
  for (const auto& [token, id] : vocabulary.items()) place(out, id_of(id, rows, token), token, TokenType::kNormal);
}

// "left right", or in newer files a list of both.
std::string merge_of(const json& merge) {
  if (merge.is_string()) {
    const auto text = merge.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && space > 0 && space + 1 < text.size() &&
        text.find(' ', space + 1) == std::string::npos)
      return text;
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    const auto left = merge[0].get<std::string>(), right = merge[1].get<std::string>();
    if (!left.empty() && !right.empty() && (left + right).find(' ') == std::string::npos) return left + ' ' + right;
  }
  fail("{}: model.merges must hold pairs of tokens without spaces, got {}", kWhat, shown(merge));
}

void add_added_tokens(GgufTokenizer& out, const json& root, int64_t rows) {
  const json& added = member(root, "added_tokens");
  if (added.is_null()) return;
  ADDER_CHECK(added.is_array(), "{}: added_tokens must be an array, got {}", kWhat, added.type_name());
  for (const json& entry : added) {
    const json& content = entry.is_object() ? member(entry, "content") : entry;
    ADDER_CHECK(entry.is_object() && content.is_string(), "{}: an added token must be an object with content, got {}",
                kWhat, shown(entry));
    const auto token = content.get<std::string>();
    for (const char* key : {"single_word", "lstrip", "rstrip"})
      check_off(entry, key, "added token " + shown_name(token));
    const int64_t id = id_of(member(entry, "id"), rows, token);
    place(out, id, token, member(entry, "special") == true ? TokenType::kControl : TokenType::kUserDefined);
    if (token == kEndOfText) out.bos = out.eos = out.unknown = id;
  }
}

}  // namespace

GgufTokenizer tokenizer_from_json(const json& tokenizer_json, int64_t rows) {
  check_text_parts(tokenizer_json);
  const json& model = member(tokenizer_json, "model");
  ADDER_CHECK(model.is_object() && type_of(model) == "BPE", "{}: model must be BPE, got {}", kWhat,
              model.is_object() ? type_of(model) : shown(model));
  for (const char* key :
       {"dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"})
    check_off(model, key, "model");
  GgufTokenizer out;
  out.tokens.resize(static_cast<size_t>(rows));
  out.types.resize(static_cast<size_t>(rows), TokenType::kUnused);
  add_vocabulary(out, model, rows);
  add_added_tokens(out, tokenizer_json, rows);
  name_unused(out);
  const json& merges = member(model, "merges");
  ADDER_CHECK(merges.is_array(), "{}: model.merges must be an array, got {}", kWhat, merges.type_name());
  for (const json& merge : merges) out.merges.push_back(merge_of(merge));
  return out;
}

GgufTokenizer byte_tokenizer(int64_t rows) {
  ADDER_CHECK(rows >= 256, "a tokenizer of bytes needs 256 rows, got {}", rows);
  GgufTokenizer out;
  out.tokens.resize(static_cast<size_t>(rows));
  out.types.resize(static_cast<size_t>(rows), TokenType::kUnused);
  // GPT-2's characters for bytes: printable ones of Latin-1 stand for themselves, the others follow from 256 on.
  uint32_t next = 256;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const uint32_t code = itself ? byte : next++;
    std::string& token = out.tokens[byte];
    if (code >= 128) token += static_cast<char>(0xc0 | (code >> 6));
    token += static_cast<char>(code >= 128 ? 0x80 | (code & 0x3f) : code);
    out.types[byte] = TokenType::kNormal;
  }
  name_unused(out);
  return out;
}

}  // namespace adder::weights
