#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

namespace adder::weights {

// The tokenizer inside a GGUF file: byte-level BPE, as llama.cpp's "gpt2" model reads it.
struct GgufTokenizer {
  // As llama.cpp numbers them.
  enum class TokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

  std::string model = "gpt2";  // llama.cpp's name of the kind
  // How text is cut before the merges. "olmo" is what llama.cpp's converter finds for the GPT-NeoX tokenizer, and
  // stands for GPT-2's regular expression.
  std::string pre = "olmo";
  std::vector<std::string> tokens;  // by id; bytes as tokenizer.json's characters, added tokens as their plain text
  std::vector<TokenType> types;     // of each token
  std::vector<std::string> merges;  // "left right", the first one first
  // Without them llama.cpp takes token 11 for begin and end of a text.
  std::optional<int64_t> bos;      // begin of a text
  std::optional<int64_t> eos;      // end of a text
  std::optional<int64_t> unknown;  // what no other token stands for
  bool add_bos = false;            // llama.cpp puts bos in front of a text
};

// From the contents of a byte-level BPE's tokenizer.json, with unused tokens up to `rows`. Begin, end and unknown are
// <|endoftext|> where there is one. What llama.cpp would cut otherwise is refused, but for the normalisation to NFC,
// which it leaves out: text that is not in that form gets other tokens there.
GgufTokenizer tokenizer_from_json(const nlohmann::json& tokenizer_json, int64_t rows);

// For models of bytes: token i is byte i, the rest of `rows` is unused.
GgufTokenizer byte_tokenizer(int64_t rows);

}  // namespace adder::weights
