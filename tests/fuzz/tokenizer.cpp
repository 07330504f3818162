#include "adder/data/tokenizer.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "adder/data/byte_level.h"
#include "tests/fuzz/fuzz.h"

using namespace adder;

namespace {

// A vocabulary needs a token for each byte: "@bytes":7 stands for those, with the ids from 7 to 262.
std::string with_bytes(std::string_view text) {
  constexpr std::string_view kMark = "\"@bytes\":";
  const size_t mark = text.find(kMark);
  if (mark == text.npos) return std::string(text);
  size_t at = mark + kMark.size();
  int first = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9' && first < 100000; ++at)
    first = 10 * first + text[at] - '0';
  static const auto keys = [] {
    std::array<std::string, 256> all;
    for (int byte = 0; byte < 256; ++byte) {
      const std::string token = data::token_of_byte(static_cast<unsigned char>(byte));
      all[byte] = (byte == 0 ? "\"" : ",\"") + std::string(token == "\"" || token == "\\" ? "\\" : "") + token + "\":";
    }
    return all;
  }();
  std::string out(text.substr(0, mark));
  for (int byte = 0; byte < 256; ++byte) out.append(keys[byte]) += std::to_string(first + byte);
  return out.append(text.substr(at));
}

}  // namespace

// A tokenizer.json, and a text that it encodes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static fuzz::Folder folder;
  const auto parts = fuzz::parts_of(fuzz::text_of(data, size));
  const std::string file = with_bytes(parts[0]);
  folder.write({{"tokenizer.json", file}});
  std::optional<data::Tokenizer> tokenizer;
  fuzz::reads(file.size(), {.per_byte = 60, .base = 100000},
              [&] { tokenizer.emplace(folder.path() / "tokenizer.json"); });
  if (!tokenizer || parts.size() == 1) return 0;
  for (const auto special : {data::SpecialTokens::kAllowed, data::SpecialTokens::kAsText}) {
    try {
      const auto ids = tokenizer->encode(parts[1], special);
      const auto known = [&](int64_t id) { return id >= 0 && !tokenizer->content(id).empty(); };
      if (!std::ranges::all_of(ids, known)) std::abort();
      const std::string_view text = parts[1];
      if (const auto cut = tokenizer->cut_before(text, text.size())) {
        auto halves = tokenizer->encode(text.substr(0, *cut), special);
        tokenizer->encode(text.substr(*cut), special, halves, *cut);
        if (halves != ids) std::abort();
      }
      (void)tokenizer->decode(ids);
    } catch (const Error&) {  // a text that is no UTF-8
    }
  }
  return 0;
}
