#pragma once

#include <filesystem>

#include "adder/models/mamba_lm.h"
#include "adder/weights/gguf_tokenizer.h"

namespace adder::models {

// How save_gguf() writes.
struct GgufOptions {
  torch::ScalarType type = torch::kFloat;             // of the large matrices: float32, float16 or bfloat16
  const weights::GgufTokenizer* tokenizer = nullptr;  // without it llama.cpp runs on token ids only
  std::string name;                                   // shown to users
  bool accept_norm_eps = false;                       // inner norms with another epsilon than the others, see GgufMamba
};

// A file that llama.cpp runs. What its architecture "mamba" has no word for is refused by name.
void save_gguf(const MambaLMImpl& model, const std::filesystem::path& path, const GgufOptions& options);

}  // namespace adder::models
