#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "adder/weights/gguf_tokenizer.h"

namespace adder::weights {

// A Mamba language model as llama.cpp's architecture "mamba" knows it.
struct GgufMamba {
  std::string name;  // shown to users
  int64_t d_model = 0, n_layer = 0;
  int64_t vocab_size = 0;  // the first rows of embedding and head; what pads them is left out
  int64_t d_inner = 0, d_state = 16, d_conv = 4;
  int64_t dt_rank = 0;  // 0: delta does not depend on the input
  double norm_eps = 1e-5;
  bool inner_norm = false;  // RMS norm without weights on B, C and the low-rank delta, as in FalconMamba
  double inner_norm_eps = 1e-6;
  // llama.cpp takes norm_eps for the inner norms too, and its converter writes FalconMamba (1e-5, 1e-6) all the same.
  // Without this two different values are refused.
  bool accept_norm_eps_inside = false;

  // What llama.cpp knows in one form only. Others are refused.
  std::string norm = "rms", discretization = "euler";
  bool conv_bias = true, bias = false, selective_B = true, selective_C = true, complex = false;

  // With the names of the published checkpoints; lm_head.weight only where it is not the embedding.
  std::vector<std::pair<std::string, at::Tensor>> tensors;
};

// Writes a file that llama.cpp runs, at once. The matrices are written as `type` (float32, float16 or bfloat16);
// convolution, A, D, biases and norms stay float32. Without a tokenizer llama.cpp runs on token ids only. Everything
// that the format can not hold, missing or unknown tensors and wrong shapes are refused before anything is written.
void write_gguf(const std::filesystem::path& path, const GgufMamba& model, at::ScalarType type,
                const GgufTokenizer* tokenizer = nullptr);

}  // namespace adder::weights
