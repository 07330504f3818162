#include "adder/weights/gguf_mamba.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "adder/core/check.h"
#include "adder/weights/gguf.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {

// That of llama.cpp's converter: the model itself has no limit.
constexpr uint32_t kContextLength = 1 << 20;
// llama.cpp's limit.
constexpr int64_t kMaxLayers = 512;

void check_options(const GgufMamba& m, at::ScalarType type, const std::string& path) {
  const auto refuse = [&](bool unless, const std::string& what, const auto& got) {
    ADDER_CHECK(unless, "{}: llama.cpp's mamba has {}; got {}", path, what, got);
  };
  refuse(m.norm == "rms", "norm rms only", m.norm);
  refuse(m.discretization == "euler", "discretization euler only", m.discretization);
  refuse(!m.complex, "real states only", "complex = true");
  refuse(m.conv_bias, "a bias in the convolution", "conv_bias = false");
  refuse(!m.bias, "no biases in in_proj and out_proj", "bias = true");
  refuse(m.dt_rank >= 1, "a delta that depends on the input (dt_rank >= 1)", m.dt_rank);
  refuse(m.selective_B, "a B that depends on the input", "selective_B = false");
  refuse(m.selective_C, "a C that depends on the input", "selective_C = false");
  refuse(m.d_inner == 2 * m.d_model, "expand 2 only", fmt::format("d_inner {} with d_model {}", m.d_inner, m.d_model));
  if (m.inner_norm && !m.accept_norm_eps_inside)
    refuse(m.inner_norm_eps == m.norm_eps, "one epsilon for all norms",
           fmt::format("norm_eps {} with inner_norm_eps {}", m.norm_eps, m.inner_norm_eps));
  for (const auto& [what, value] :
       {std::pair("d_model", m.d_model), std::pair("n_layer", m.n_layer), std::pair("vocab_size", m.vocab_size),
        std::pair("d_conv", m.d_conv), std::pair("d_state", m.d_state)})
    ADDER_CHECK(value >= 1 && value <= INT32_MAX, "{}: {} must be from 1 to {}, got {}", path, what, INT32_MAX, value);
  ADDER_CHECK(m.n_layer <= kMaxLayers, "{}: llama.cpp's mamba has at most {} layers; got {}", path, kMaxLayers,
              m.n_layer);
  ADDER_CHECK(std::isfinite(m.norm_eps) && m.norm_eps >= 0, "{}: norm_eps must be a number >= 0, got {}", path,
              m.norm_eps);
  ADDER_CHECK(type == at::kFloat || type == at::kHalf || type == at::kBFloat16,
              "{}: the matrices' type must be float32, float16 or bfloat16, got {}", path, c10::toString(type));
}

void check_tokenizer(const GgufTokenizer& tokenizer, int64_t vocab_size, const std::string& path) {
  const auto rows = static_cast<size_t>(vocab_size);
  ADDER_CHECK(tokenizer.tokens.size() == rows && tokenizer.types.size() == rows,
              "{}: the tokenizer must have a token and a type for each of vocab_size = {} rows, got {} and {}", path,
              rows, tokenizer.tokens.size(), tokenizer.types.size());
  std::set<std::string_view> seen;
  for (const std::string& token : tokenizer.tokens)
    ADDER_CHECK(seen.insert(token).second, "{}: the tokenizer has token {} twice", path, shown_name(token));
  for (const auto& [what, id] :
       {std::pair("bos", tokenizer.bos), std::pair("eos", tokenizer.eos), std::pair("unknown", tokenizer.unknown)})
    ADDER_CHECK(!id || (*id >= 0 && *id < vocab_size), "{}: the tokenizer's {} id must be below {}, got {}", path, what,
                vocab_size, *id);
}

// Takes the model's tensors by name, and knows in the end which were not asked for.
class Parts {
 public:
  Parts(const GgufMamba& model, const std::string& path) : path_(path) {
    for (const auto& [name, tensor] : model.tensors) {
      ADDER_CHECK(left_.emplace(name, tensor).second, "{}: tensor {} is given twice", path_, shown_name(name));
      ADDER_CHECK(tensor.defined(), "{}: tensor {}: is undefined", path_, shown_name(name));
    }
  }

  bool has(const std::string& name) const { return left_.contains(name); }

  at::Tensor take(const std::string& name, at::IntArrayRef shape) {
    const auto found = left_.find(name);
    ADDER_CHECK(found != left_.end(), "{}: tensor {} is missing", path_, shown_name(name));
    at::Tensor tensor = found->second.detach();
    left_.erase(found);
    ADDER_CHECK(tensor.sizes() == shape, "{}: tensor {} must have shape ({}), got ({})", path_, shown_name(name),
                fmt::join(shape, ", "), fmt::join(tensor.sizes(), ", "));
    return tensor;
  }

  // With the vocabulary's rows and any number of others behind them.
  at::Tensor take_rows(const std::string& name, int64_t rows, int64_t width) {
    const auto found = left_.find(name);
    const int64_t all = found != left_.end() && found->second.dim() == 2 ? std::max(found->second.size(0), rows) : rows;
    return take(name, {all, width}).narrow(0, 0, rows);
  }

  void check_all_taken() const {
    ADDER_CHECK(left_.empty(), "{}: llama.cpp's mamba has no place for tensor {}", path_,
                shown_name(left_.empty() ? "" : left_.begin()->first));
  }

 private:
  std::string path_;
  std::map<std::string, at::Tensor> left_;
};

std::vector<GgufTensor> mapped_tensors(const GgufMamba& m, at::ScalarType type, const std::string& path) {
  Parts parts(m, path);
  std::vector<GgufTensor> out;
  const auto add = [&](const std::string& name, const at::Tensor& values, at::ScalarType stored) {
    out.push_back({name, values, stored});
  };
  const at::Tensor embedding = parts.take_rows("backbone.embedding.weight", m.vocab_size, m.d_model);
  add("token_embd.weight", embedding, type);
  for (int64_t i = 0; i < m.n_layer; ++i) {
    const std::string from = fmt::format("backbone.layers.{}.", i), mixer = from + "mixer.";
    const std::string to = fmt::format("blk.{}.", i);
    add(to + "attn_norm.weight", parts.take(from + "norm.weight", {m.d_model}), at::kFloat);
    add(to + "ssm_in.weight", parts.take(mixer + "in_proj.weight", {2 * m.d_inner, m.d_model}), type);
    add(to + "ssm_conv1d.weight", parts.take(mixer + "conv1d.weight", {m.d_inner, 1, m.d_conv}).squeeze(1), at::kFloat);
    add(to + "ssm_conv1d.bias", parts.take(mixer + "conv1d.bias", {m.d_inner}), at::kFloat);
    add(to + "ssm_x.weight", parts.take(mixer + "x_proj.weight", {m.dt_rank + 2 * m.d_state, m.d_inner}), type);
    add(to + "ssm_dt.weight", parts.take(mixer + "dt_proj.weight", {m.d_inner, m.dt_rank}), type);
    add(to + "ssm_dt.bias", parts.take(mixer + "dt_proj.bias", {m.d_inner}), at::kFloat);
    const at::Tensor A_log = parts.take(mixer + "A_log", {m.d_inner, m.d_state});
    add(to + "ssm_a", A_log.to(at::kCPU, at::kFloat).exp().neg(), at::kFloat);
    add(to + "ssm_d", parts.take(mixer + "D", {m.d_inner}), at::kFloat);
    add(to + "ssm_out.weight", parts.take(mixer + "out_proj.weight", {m.d_model, m.d_inner}), type);
  }
  add("output_norm.weight", parts.take("backbone.norm_f.weight", {m.d_model}), at::kFloat);
  if (parts.has("lm_head.weight")) {
    const at::Tensor head = parts.take_rows("lm_head.weight", m.vocab_size, m.d_model);
    const bool tied = head.device() == embedding.device() && head.scalar_type() == embedding.scalar_type() &&
                      at::equal(head, embedding);
    if (!tied) add("output.weight", head, type);
  }
  parts.check_all_taken();
  return out;
}

uint32_t file_type(at::ScalarType type) {
  return type == at::kFloat ? 0 : type == at::kHalf ? 1 : 32;
}

GgufMetadata mapped_metadata(const GgufMamba& m, at::ScalarType type, const GgufTokenizer* tokenizer) {
  const auto size = [](int64_t value) { return static_cast<uint32_t>(value); };
  GgufMetadata out = {
      {"general.architecture", std::string("mamba")},
      {"general.name", m.name},
      {"mamba.context_length", kContextLength},
      {"mamba.embedding_length", size(m.d_model)},
      {"mamba.feed_forward_length", uint32_t{0}},
      {"mamba.attention.head_count", uint32_t{0}},
      {"mamba.block_count", size(m.n_layer)},
      {"mamba.vocab_size", size(m.vocab_size)},
      {"mamba.ssm.conv_kernel", size(m.d_conv)},
      {"mamba.ssm.inner_size", size(m.d_inner)},
      {"mamba.ssm.state_size", size(m.d_state)},
      {"mamba.ssm.time_step_rank", size(m.dt_rank)},
      {"mamba.attention.layer_norm_rms_epsilon", static_cast<float>(m.norm_eps)},
      {"mamba.ssm.dt_b_c_rms", m.inner_norm},
      {"general.file_type", file_type(type)},
  };
  if (!tokenizer) {
    out.emplace_back("tokenizer.ggml.model", std::string("none"));
    return out;
  }
  std::vector<int32_t> types;
  for (const GgufTokenizer::TokenType token_type : tokenizer->types) types.push_back(static_cast<int32_t>(token_type));
  out.emplace_back("tokenizer.ggml.model", tokenizer->model);
  out.emplace_back("tokenizer.ggml.pre", tokenizer->pre);
  out.emplace_back("tokenizer.ggml.tokens", tokenizer->tokens);
  out.emplace_back("tokenizer.ggml.token_type", types);
  out.emplace_back("tokenizer.ggml.merges", tokenizer->merges);
  if (tokenizer->bos) out.emplace_back("tokenizer.ggml.bos_token_id", size(*tokenizer->bos));
  if (tokenizer->eos) out.emplace_back("tokenizer.ggml.eos_token_id", size(*tokenizer->eos));
  if (tokenizer->unknown) out.emplace_back("tokenizer.ggml.unknown_token_id", size(*tokenizer->unknown));
  out.emplace_back("tokenizer.ggml.add_bos_token", tokenizer->add_bos);
  return out;
}

}  // namespace

void write_gguf(const std::filesystem::path& path, const GgufMamba& model, at::ScalarType type,
                const GgufTokenizer* tokenizer) {
  check_options(model, type, path.string());
  if (tokenizer) check_tokenizer(*tokenizer, model.vocab_size, path.string());
  const std::vector<GgufTensor> tensors = mapped_tensors(model, type, path.string());
  write_gguf_file(path, mapped_metadata(model, type, tokenizer), tensors);
}

}  // namespace adder::weights
