#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "adder/data/byte_level.h"
#include "tests/data/temporary_folder.h"

namespace adder::data {

// A tokenizer.json whose vocabulary is <|endoftext|> as 0, byte b as b + 1, and what the merges make; added tokens come
// behind. `merges` hold tokens as the vocabulary writes them.
inline nlohmann::json small_tokenizer(const std::vector<std::string>& merges = {},
                                      const std::vector<nlohmann::json>& added_tokens = {}) {
  nlohmann::json vocabulary = {{"<|endoftext|>", 0}};
  for (int byte = 0; byte < 256; ++byte) vocabulary[token_of_byte(static_cast<unsigned char>(byte))] = byte + 1;
  for (std::string merged : merges) {
    merged.erase(merged.find(' '), 1);
    if (!vocabulary.contains(merged)) vocabulary[merged] = vocabulary.size();
  }
  nlohmann::json added = nlohmann::json::array();
  const auto add = [&](const nlohmann::json& changes, size_t id) {
    added.push_back({{"id", id},
                     {"content", ""},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", false}});
    added.back().update(changes);
  };
  add({{"content", "<|endoftext|>"}, {"special", true}}, 0);
  for (size_t i = 0; i < added_tokens.size(); ++i) add(added_tokens[i], vocabulary.size() + i);
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", {{"type", "NFC"}}},
          {"pre_tokenizer",
           {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
          {"post_processor", nullptr},
          {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"vocab", vocabulary},
            {"merges", merges}}}};
}

}  // namespace adder::data
