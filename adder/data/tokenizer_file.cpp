#include "adder/data/tokenizer_file.h"

#include <algorithm>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"
#include "adder/core/options_source.h"
#include "adder/data/byte_level.h"
#include "adder/data/pre_tokenizer.h"
#include "adder/data/unicode.h"

namespace adder::data {
namespace {

using Json = nlohmann::json;
using core::quote_for_message;

std::string shown(const Json& json) {
  constexpr size_t kLongest = 100;
  const std::string text = json.dump(-1, ' ', true);
  return text.size() <= kLongest ? text : text.substr(0, kLongest) + "...";
}

// One object or array of the file, with the words that errors call it by.
class Node {
 public:
  Node(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  const Json& json() const { return json_; }
  bool is_null() const { return json_.is_null(); }
  [[noreturn]] void bad(const std::string& rule) const { fail("{} {}, got {}", where_, rule, shown(json_)); }

  Node member(const std::string& key) const {
    if (!json_.is_object()) bad("must be an object");
    const auto found = json_.find(key);
    ADDER_CHECK(found != json_.end(), "{}key \"{}\" is missing", prefix(": "), key);
    return Node(*found, prefix(".") + key);
  }
  bool has(const std::string& key) const { return json_.is_object() && json_.contains(key); }
  Node element(size_t i) const { return Node(json_[i], fmt::format("{}[{}]", where_, i)); }

  Node token(const std::string& content, const Json& value) const {
    return Node(value, fmt::format("{}[{}]", where_, quote_for_message(content)));
  }

  void allow_keys(std::initializer_list<std::string_view> known) const {
    if (!json_.is_object()) bad("must be an object");
    for (const auto& [key, value] : json_.items()) {
      ADDER_CHECK(std::find(known.begin(), known.end(), key) != known.end(), "{}key {} is not supported, it holds {}",
                  prefix(": "), quote_for_message(key), shown(value));
    }
  }
  bool boolean() const {
    if (!json_.is_boolean()) bad("must be true or false");
    return json_.get<bool>();
  }
  const std::string& text() const {
    if (!json_.is_string()) bad("must be a string");
    return json_.get_ref<const std::string&>();
  }
  size_t elements() const {
    if (!json_.is_array()) bad("must be an array");
    return json_.size();
  }
  // The integer, where it is from 0 to limit - 1; `limit` if not.
  uint64_t integer_below(uint64_t limit) const {
    return json_.is_number_unsigned() ? std::min(json_.get<uint64_t>(), limit) : limit;
  }
  // What "type" holds; "" for null.
  std::string type() const { return is_null() ? "" : member("type").text(); }

 private:
  // The file's own name ends in a colon.
  std::string prefix(const char* joint) const { return where_ + (where_.ends_with(':') ? " " : joint); }

  const Json& json_;
  std::string where_;
};

// trim_offsets changes where a token is said to lie, not which one it is.
void check_byte_level(const Node& node) {
  node.allow_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  for (const char* key : {"add_prefix_space", "trim_offsets", "use_regex"})
    if (node.has(key)) node.member(key).boolean();
}

bool reads_nfc(const Node& node) {
  if (node.is_null()) return false;
  const std::string type = node.type();
  if (type == "NFC") {
    node.allow_keys({"type"});
    return true;
  }
  if (type != "Sequence") node.bad("must be null, NFC or a Sequence of these");
  node.allow_keys({"type", "normalizers"});
  const Node members = node.member("normalizers");
  bool nfc = false;
  for (size_t i = 0; i < members.elements(); ++i) nfc |= reads_nfc(members.element(i));
  return nfc;
}

void check_split(const Node& node) {
  if (node.type() != "Split") node.bad("must be a Split before the ByteLevel");
  node.allow_keys({"type", "pattern", "behavior", "invert"});
  const Node pattern = node.member("pattern");
  pattern.allow_keys({"Regex"});
  if (pattern.member("Regex").text() != kGpt2Pattern) pattern.bad("must be GPT-2's regular expression");
  if (node.member("behavior").text() != "Isolated") node.member("behavior").bad("must be Isolated");
  if (node.member("invert").boolean()) node.member("invert").bad("must be false");
}

void read_pre_tokenizer(const Node& node, TokenizerParts& parts) {
  if (node.type() == "ByteLevel") {
    check_byte_level(node);
    parts.add_prefix_space = node.member("add_prefix_space").boolean();
    parts.split_words = !node.has("use_regex") || node.member("use_regex").boolean();
    return;
  }
  if (node.type() != "Sequence") node.bad("must be a ByteLevel or a Sequence of a Split and a ByteLevel");
  node.allow_keys({"type", "pretokenizers"});
  const Node members = node.member("pretokenizers");
  const size_t count = members.elements();
  if (count < 1 || count > 2 || members.element(count - 1).type() != "ByteLevel")
    members.bad("must be a ByteLevel, perhaps behind a Split");
  read_pre_tokenizer(members.element(count - 1), parts);
  if (count == 1) return;
  check_split(members.element(0));
  parts.split_words = true;
  if (parts.add_prefix_space) members.element(1).member("add_prefix_space").bad("must be false behind a Split");
}

// Dropout would make words random, and a vocabulary with all bytes never needs its unknown token.
void check_model_options(const Node& model) {
  model.allow_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                    "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (model.has("type") && model.type() != "BPE") model.member("type").bad("must be BPE");
  if (model.has("dropout")) {
    const Node dropout = model.member("dropout");
    if (!dropout.is_null() && !(dropout.json().is_number() && dropout.json().get<double>() == 0))
      dropout.bad("must be null or 0");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.has(key) || model.member(key).is_null()) continue;
    if (!model.member(key).text().empty()) model.member(key).bad("must be null or empty");
  }
  if (model.has("unk_token") && !model.member("unk_token").is_null()) model.member("unk_token").text();
  for (const char* key : {"fuse_unk", "byte_fallback"})
    if (model.has(key)) model.member(key).boolean();
  if (model.has("ignore_merges") && model.member("ignore_merges").boolean())
    model.member("ignore_merges").bad("must be false");
}

using IdOf = std::unordered_map<std::string_view, int32_t>;

// The keys of `ids` lie in the JSON document.
IdOf read_vocabulary(const Node& vocabulary, TokenizerParts& parts) {
  if (!vocabulary.json().is_object() || vocabulary.json().empty()) vocabulary.bad("must be an object with tokens");
  const size_t size = vocabulary.json().size();
  if (size >= size_t{1} << 30) vocabulary.bad("must have fewer than 2^30 tokens");
  parts.contents.resize(size);
  IdOf ids;
  ids.reserve(size);
  for (auto entry = vocabulary.json().begin(); entry != vocabulary.json().end(); ++entry) {
    const std::string& content = entry.key();
    const Node node = vocabulary.token(content, entry.value());
    const uint64_t id = node.integer_below(size);
    if (id == size) node.bad(fmt::format("must be an id from 0 to {}", size - 1));
    if (content.empty()) vocabulary.bad("must have no empty token");
    if (!parts.contents[id].empty())
      node.bad(fmt::format("must have an id of its own, as {} has it", quote_for_message(parts.contents[id])));
    parts.contents[id] = content;
    ids.emplace(content, static_cast<int32_t>(id));
  }
  return ids;
}

void read_bytes(const Node& vocabulary, const IdOf& ids, TokenizerParts& parts) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto found = ids.find(token_of_byte(static_cast<unsigned char>(byte)));
    parts.byte_ids[byte] = found == ids.end() ? -1 : found->second;
    const bool in_utf8 = byte != 0xC0 && byte != 0xC1 && byte < 0xF5;
    if (found == ids.end() && in_utf8)
      vocabulary.bad(fmt::format("must have a token for each byte of UTF-8, {} for byte {} is missing",
                                 quote_for_message(token_of_byte(static_cast<unsigned char>(byte))), byte));
  }
}

void read_merges(const Node& merges, const IdOf& ids, TokenizerParts& parts) {
  FlatMap<int32_t> seen;
  for (size_t i = 0; i < merges.elements(); ++i) {
    const Node merge = merges.element(i);
    std::string_view left, right;
    if (merge.json().is_string()) {
      const std::string_view both = merge.text();
      const size_t space = both.find(' ');
      if (space == both.npos || both.find(' ', space + 1) != both.npos) merge.bad("must be two tokens and a space");
      left = both.substr(0, space);
      right = both.substr(space + 1);
    } else {
      if (!merge.json().is_array() || merge.elements() != 2) merge.bad("must be a pair of tokens");
      left = merge.element(0).text();
      right = merge.element(1).text();
    }
    const auto id_of = [&](std::string_view content) {
      const auto found = ids.find(content);
      if (found == ids.end())
        merge.bad(fmt::format("must be of tokens in the vocabulary, {} is not", quote_for_message(content)));
      return found->second;
    };
    const Bpe::Rule rule{id_of(left), id_of(right), id_of(std::string(left).append(right))};
    const auto pair = static_cast<uint64_t>(rule.left) << 32 | static_cast<uint64_t>(rule.right);
    const auto [first, is_new] = seen.insert(pair, static_cast<int32_t>(i));
    if (!is_new) merge.bad(fmt::format("must not repeat element {}", *first));
    parts.rules.push_back(rule);
  }
}

// The reference package gives added tokens that the vocabulary lacks the next ids, whatever the file says: only a file
// that says the same is clear.
void read_added_tokens(const Node& list, const IdOf& ids, TokenizerParts& parts) {
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t i = 0; i < list.elements(); ++i) {
    const Node node = list.element(i);
    node.allow_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.content = node.member("content").text();
    token.single_word = node.member("single_word").boolean();
    token.lstrip = node.member("lstrip").boolean();
    token.rstrip = node.member("rstrip").boolean();
    token.normalized = node.member("normalized").boolean();
    token.special = node.member("special").boolean();
    if (token.content.empty()) node.member("content").bad("must not be empty");
    if (const auto [first, is_new] = seen.emplace(node.member("content").text(), i); !is_new)
      node.member("content").bad(fmt::format("must not repeat that of element {}", first->second));
    const auto known = ids.find(token.content);
    const size_t expected = known == ids.end() ? parts.contents.size() : static_cast<size_t>(known->second);
    if (node.member("id").integer_below(expected + 1) != expected) {
      node.member("id").bad(
          fmt::format("must be {}, {}", expected, known == ids.end() ? "the next one" : "the one in the vocabulary"));
    }
    if (known == ids.end()) parts.contents.push_back(token.content);
    token.id = static_cast<int32_t>(expected);
    parts.added_tokens.push_back(std::move(token));
  }
}

}  // namespace

TokenizerParts read_tokenizer_file(const std::filesystem::path& path) {
  const core::MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const Json document = core::parse_json_sorted(text, path.string());
  const Node top(document, path.string() + ":");
  top.allow_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                  "decoder", "model"});
  if (top.has("version") && top.member("version").text() != "1.0") top.member("version").bad("must be 1.0");
  for (const char* key : {"truncation", "padding"})
    if (top.has(key) && !top.member(key).is_null()) top.member(key).bad("must be null");

  TokenizerParts parts;
  if (top.has("normalizer")) parts.nfc = reads_nfc(top.member("normalizer"));
  read_pre_tokenizer(top.member("pre_tokenizer"), parts);
  if (top.has("post_processor") && !top.member("post_processor").is_null()) {
    const Node node = top.member("post_processor");
    if (node.type() != "ByteLevel") node.bad("must be null or ByteLevel");
    check_byte_level(node);
  }
  const Node decoder = top.member("decoder");
  if (decoder.type() != "ByteLevel") decoder.bad("must be ByteLevel");
  check_byte_level(decoder);

  const Node model = top.member("model");
  check_model_options(model);
  const IdOf ids = read_vocabulary(model.member("vocab"), parts);
  read_bytes(model.member("vocab"), ids, parts);
  read_merges(model.member("merges"), ids, parts);
  if (top.has("added_tokens")) read_added_tokens(top.member("added_tokens"), ids, parts);
  return parts;
}

}  // namespace adder::data
