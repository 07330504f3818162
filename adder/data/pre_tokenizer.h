#pragma once

#include <cstddef>
#include <string_view>

namespace adder::data {

// The pattern that GPT-2 splits text by, as tokenizer files write it.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Where the word ends that kGpt2Pattern finds at text[begin], begin < text.size(), in text that is valid UTF-8. Every
// text is a row of such words without gaps.
size_t word_end(std::string_view text, size_t begin);

}  // namespace adder::data
