#include "adder/weights/gguf_mamba.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "adder/core/error.h"
#include "adder/weights/gguf.h"
#include "tests/error_of.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using TokenType = GgufTokenizer::TokenType;

// Two layers of width 4; the embedding has 2 rows more than the vocabulary.
GgufMamba small_model() {
  GgufMamba m;
  m.name = "small";
  m.d_model = 4;
  m.n_layer = 2;
  m.vocab_size = 6;
  m.d_inner = 8;
  m.d_state = 3;
  m.d_conv = 2;
  m.dt_rank = 1;
  const auto add = [&](const std::string& name, at::IntArrayRef shape) {
    m.tensors.emplace_back(name, at::randn(shape));
  };
  add("backbone.embedding.weight", {8, 4});
  for (const std::string layer : {"backbone.layers.0.", "backbone.layers.1."}) {
    add(layer + "mixer.in_proj.weight", {16, 4});
    add(layer + "mixer.conv1d.weight", {8, 1, 2});
    add(layer + "mixer.conv1d.bias", {8});
    add(layer + "mixer.x_proj.weight", {7, 8});
    add(layer + "mixer.dt_proj.weight", {8, 1});
    add(layer + "mixer.dt_proj.bias", {8});
    add(layer + "mixer.A_log", {8, 3});
    add(layer + "mixer.D", {8});
    add(layer + "mixer.out_proj.weight", {4, 8});
    add(layer + "norm.weight", {4});
  }
  add("backbone.norm_f.weight", {4});
  return m;
}

at::Tensor& tensor_of(GgufMamba& m, const std::string& name) {
  const auto found = std::ranges::find(m.tensors, name, &std::pair<std::string, at::Tensor>::first);
  EXPECT_NE(found, m.tensors.end()) << name;
  return found->second;
}

class GgufMambaFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_gguf_mamba_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "x.gguf";
    torch::manual_seed(1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string error_of(const std::function<void(GgufMamba&)>& change, const GgufTokenizer* tokenizer = nullptr,
                       at::ScalarType type = at::kFloat) const {
    GgufMamba model = small_model();
    change(model);
    const std::string error = error_behind(path_.string() + ": ", [&] { write_gguf(path_, model, type, tokenizer); });
    if (error == "no error")
      fs::remove(path_);
    else
      EXPECT_TRUE(fs::is_empty(folder_));
    return error;
  }

  fs::path folder_, path_;
};

TEST_F(GgufMambaFile, NamesShapesTypesAndValues) {
  GgufMamba model = small_model();
  write_gguf(path_, model, at::kBFloat16);
  const GgufFile file(path_);
  EXPECT_EQ(file.names().size(), 2 + 2 * 10u);
  EXPECT_EQ(file.names().front(), "token_embd.weight");
  const auto expect = [&](const std::string& name, const at::Tensor& wanted, at::ScalarType type) {
    const at::Tensor got = file.tensor(name);
    EXPECT_EQ(got.scalar_type(), type) << name;
    EXPECT_TRUE(at::equal(got, wanted.to(type))) << name;
  };
  expect("token_embd.weight", tensor_of(model, "backbone.embedding.weight").narrow(0, 0, 6), at::kBFloat16);
  expect("output_norm.weight", tensor_of(model, "backbone.norm_f.weight"), at::kFloat);
  EXPECT_FALSE(file.contains("output.weight"));
  const std::string from = "backbone.layers.1.mixer.", to = "blk.1.";
  expect(to + "attn_norm.weight", tensor_of(model, "backbone.layers.1.norm.weight"), at::kFloat);
  expect(to + "ssm_in.weight", tensor_of(model, from + "in_proj.weight"), at::kBFloat16);
  expect(to + "ssm_conv1d.weight", tensor_of(model, from + "conv1d.weight").view({8, 2}), at::kFloat);
  expect(to + "ssm_conv1d.bias", tensor_of(model, from + "conv1d.bias"), at::kFloat);
  expect(to + "ssm_x.weight", tensor_of(model, from + "x_proj.weight"), at::kBFloat16);
  expect(to + "ssm_dt.weight", tensor_of(model, from + "dt_proj.weight"), at::kBFloat16);
  expect(to + "ssm_dt.bias", tensor_of(model, from + "dt_proj.bias"), at::kFloat);
  expect(to + "ssm_a", -tensor_of(model, from + "A_log").exp(), at::kFloat);
  expect(to + "ssm_d", tensor_of(model, from + "D"), at::kFloat);
  expect(to + "ssm_out.weight", tensor_of(model, from + "out_proj.weight"), at::kBFloat16);
}

TEST_F(GgufMambaFile, Keys) {
  GgufMamba model = small_model();
  model.norm_eps = model.inner_norm_eps = 1e-6;
  model.inner_norm = true;
  write_gguf(path_, model, at::kHalf);
  const GgufMetadata wanted = {{"general.architecture", std::string("mamba")},
                               {"general.name", std::string("small")},
                               {"mamba.context_length", uint32_t{1 << 20}},
                               {"mamba.embedding_length", uint32_t{4}},
                               {"mamba.feed_forward_length", uint32_t{0}},
                               {"mamba.attention.head_count", uint32_t{0}},
                               {"mamba.block_count", uint32_t{2}},
                               {"mamba.vocab_size", uint32_t{6}},
                               {"mamba.ssm.conv_kernel", uint32_t{2}},
                               {"mamba.ssm.inner_size", uint32_t{8}},
                               {"mamba.ssm.state_size", uint32_t{3}},
                               {"mamba.ssm.time_step_rank", uint32_t{1}},
                               {"mamba.attention.layer_norm_rms_epsilon", 1e-6f},
                               {"mamba.ssm.dt_b_c_rms", true},
                               {"general.file_type", uint32_t{1}},
                               {"tokenizer.ggml.model", std::string("none")}};
  EXPECT_EQ(GgufFile(path_).metadata(), wanted);
}

TEST_F(GgufMambaFile, AHeadOfItsOwnIsWrittenAndACopyOfTheEmbeddingIsNot) {
  GgufMamba model = small_model();
  model.tensors.emplace_back("lm_head.weight", tensor_of(model, "backbone.embedding.weight").clone());
  write_gguf(path_, model, at::kFloat);
  EXPECT_FALSE(GgufFile(path_).contains("output.weight"));
  tensor_of(model, "lm_head.weight").add_(1);
  write_gguf(path_, model, at::kFloat);
  EXPECT_TRUE(at::equal(GgufFile(path_).tensor("output.weight"), tensor_of(model, "lm_head.weight").narrow(0, 0, 6)));
}

TEST_F(GgufMambaFile, WhatLlamaCppHasNotIsRefusedByName) {
  EXPECT_EQ(error_of([](GgufMamba& m) { m.norm = "layer"; }), "llama.cpp's mamba has norm rms only; got layer");
  EXPECT_THAT(error_of([](GgufMamba& m) { m.discretization = "zoh"; }),
              HasSubstr("discretization euler only; got zoh"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.complex = true; }), HasSubstr("real states only"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.conv_bias = false; }), HasSubstr("conv_bias = false"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.bias = true; }), HasSubstr("no biases in in_proj and out_proj"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.selective_B = false; }), HasSubstr("selective_B = false"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.selective_C = false; }), HasSubstr("selective_C = false"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.dt_rank = 0; }), HasSubstr("a delta that depends on the input"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.d_inner = 4; }), HasSubstr("expand 2 only; got d_inner 4 with d_model 4"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.d_conv = 0; }), HasSubstr("d_conv must be from 1 to"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.n_layer = 513; }), HasSubstr("at most 512 layers; got 513"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.vocab_size = 0; }), HasSubstr("vocab_size must be from 1 to"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.norm_eps = NAN; }), HasSubstr("norm_eps must be a number >= 0"));
  EXPECT_THAT(error_of([](GgufMamba& m) { m.inner_norm = true; }),
              HasSubstr("one epsilon for all norms; got norm_eps 1e-05 with inner_norm_eps 1e-06"));
  EXPECT_EQ(error_of([](GgufMamba& m) { m.inner_norm = m.accept_norm_eps_inside = true; }), "no error");
  EXPECT_THAT(error_of([](GgufMamba&) {}, nullptr, at::kDouble), HasSubstr("got Double"));
}

TEST_F(GgufMambaFile, TensorsAreCheckedByName) {
  EXPECT_EQ(error_of([](GgufMamba& m) { m.tensors.pop_back(); }), "tensor \"backbone.norm_f.weight\" is missing");
  EXPECT_EQ(error_of([](GgufMamba& m) { m.tensors.emplace_back("x", at::ones({1})); }),
            "llama.cpp's mamba has no place for tensor \"x\"");
  EXPECT_EQ(error_of([](GgufMamba& m) { m.tensors.push_back(m.tensors.front()); }),
            "tensor \"backbone.embedding.weight\" is given twice");
  EXPECT_EQ(error_of([](GgufMamba& m) { tensor_of(m, "backbone.layers.1.mixer.D") = at::ones({9}); }),
            "tensor \"backbone.layers.1.mixer.D\" must have shape (8), got (9)");
  EXPECT_EQ(error_of([](GgufMamba& m) { m.vocab_size = 9; }),
            "tensor \"backbone.embedding.weight\" must have shape (9, 4), got (8, 4)");
  EXPECT_THAT(error_of([](GgufMamba& m) { tensor_of(m, "backbone.norm_f.weight") = at::Tensor(); }),
              HasSubstr("is undefined"));
  EXPECT_THAT(error_of([](GgufMamba& m) { tensor_of(m, "backbone.embedding.weight").mul_(1e6); }, nullptr, at::kHalf),
              HasSubstr("tensor \"token_embd.weight\": Half can not hold its value"));
}

json small_tokenizer() {
  return json::parse(
      R"({"normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false},
    "post_processor": null, "added_tokens": [
      {"id": 0, "content": "<|endoftext|>", "special": true}, {"id": 4, "content": "  ", "special": false}],
    "model": {"type": "BPE", "vocab": {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}})");
}

TEST_F(GgufMambaFile, ATokenizerIsWritten) {
  const GgufTokenizer tokenizer = tokenizer_from_json(small_tokenizer(), 6);
  write_gguf(path_, small_model(), at::kFloat, &tokenizer);
  const GgufFile file(path_);
  const auto expect = [&](const char* key, const GgufValue& wanted) {
    ASSERT_NE(file.value(key), nullptr) << key;
    EXPECT_EQ(*file.value(key), wanted) << key;
  };
  expect("tokenizer.ggml.model", std::string("gpt2"));
  expect("tokenizer.ggml.pre", std::string("olmo"));
  expect("tokenizer.ggml.tokens", std::vector<std::string>{"<|endoftext|>", "a", "b", "ab", "  ", "[PAD5]"});
  expect("tokenizer.ggml.token_type", std::vector<int32_t>{3, 1, 1, 1, 4, 5});
  expect("tokenizer.ggml.merges", std::vector<std::string>{"a b"});
  expect("tokenizer.ggml.bos_token_id", uint32_t{0});
  expect("tokenizer.ggml.eos_token_id", uint32_t{0});
  expect("tokenizer.ggml.unknown_token_id", uint32_t{0});
  expect("tokenizer.ggml.add_bos_token", false);
}

TEST_F(GgufMambaFile, TokenizersThatDoNotFitTheModel) {
  const auto error = [&](const std::function<void(GgufTokenizer&)>& change) {
    GgufTokenizer tokenizer = tokenizer_from_json(small_tokenizer(), 6);
    change(tokenizer);
    return error_of([](GgufMamba&) {}, &tokenizer);
  };
  EXPECT_EQ(error([](GgufTokenizer&) {}), "no error");
  EXPECT_THAT(error([](GgufTokenizer& t) { t.tokens.pop_back(); }), HasSubstr("vocab_size = 6 rows, got 5 and 6"));
  EXPECT_THAT(error([](GgufTokenizer& t) { t.tokens[5] = "a"; }), HasSubstr("has token \"a\" twice"));
  EXPECT_THAT(error([](GgufTokenizer& t) { t.eos = 6; }), HasSubstr("eos id must be below 6, got 6"));
}

TEST(GgufTokenizers, NewerMergesAndBytes) {
  json tokenizer = small_tokenizer();
  tokenizer["model"]["merges"] = json::parse(R"([["a", "b"]])");
  EXPECT_THAT(tokenizer_from_json(tokenizer, 5).merges, ElementsAre("a b"));
  const GgufTokenizer bytes = byte_tokenizer(257);
  EXPECT_EQ(bytes.tokens['a'], "a");
  EXPECT_EQ(bytes.tokens[' '], "\xc4\xa0");
  EXPECT_EQ(bytes.tokens[0xff], "\xc3\xbf");
  EXPECT_EQ(bytes.tokens[256], "[PAD256]");
  EXPECT_EQ(bytes.types[256], TokenType::kUnused);
  EXPECT_THAT([] { byte_tokenizer(255); }, testing::ThrowsMessage<Error>(HasSubstr("256 rows, got 255")));
}

TEST(GgufTokenizers, WhatLlamaCppWouldCutOtherwiseIsRefused) {
  const auto error = [&](const std::string& patch, int64_t rows = 6) -> std::string {
    json tokenizer = small_tokenizer();
    tokenizer.merge_patch(json::parse(patch));
    try {
      tokenizer_from_json(tokenizer, rows);
    } catch (const Error& e) {
      EXPECT_TRUE(std::string(e.what()).starts_with("tokenizer.json: ")) << e.what();
      return e.what();
    }
    return "no error";
  };
  EXPECT_EQ(error("{}"), "no error");
  EXPECT_THAT(error("[]"), HasSubstr("must be an object"));
  EXPECT_THAT(error("{}", 4), HasSubstr("token \"  \": its id must be a whole number below the model's 4 rows, got 4"));
  EXPECT_THAT(error(R"({"normalizer": {"type": "NFKC"}})"), HasSubstr("normalizer must be NFC or none, got NFKC"));
  EXPECT_THAT(error(R"({"pre_tokenizer": {"type": "Whitespace"}})"), HasSubstr("pre_tokenizer must be ByteLevel"));
  EXPECT_THAT(error(R"({"pre_tokenizer": null})"), HasSubstr("pre_tokenizer must be ByteLevel, got null"));
  EXPECT_THAT(error(R"({"pre_tokenizer": {"add_prefix_space": true}})"),
              HasSubstr("pre_tokenizer.add_prefix_space must be off"));
  EXPECT_THAT(error(R"({"pre_tokenizer": {"use_regex": false}})"), HasSubstr("use_regex must be true"));
  EXPECT_THAT(error(R"({"post_processor": {"type": "TemplateProcessing"}})"), HasSubstr("got TemplateProcessing"));
  EXPECT_THAT(error(R"({"model": {"type": "Unigram"}})"), HasSubstr("model must be BPE, got Unigram"));
  EXPECT_THAT(error(R"({"model": 3})"), HasSubstr("model must be BPE, got 3"));
  EXPECT_THAT(error(R"({"model": {"byte_fallback": true}})"), HasSubstr("model.byte_fallback must be off"));
  EXPECT_THAT(error(R"({"model": {"vocab": null}})"), HasSubstr("model.vocab must be an object, got null"));
  EXPECT_THAT(error(R"({"model": {"vocab": {"c": 1}}})"), HasSubstr("have the same id 1"));
  EXPECT_THAT(error(R"({"model": {"vocab": {"c": -1}}})"), HasSubstr("token \"c\": its id must be"));
  EXPECT_THAT(error(R"({"model": {"vocab": {"": 5}}})"), HasSubstr("token 5 is empty"));
  EXPECT_THAT(error(R"({"model": {"merges": ["ab"]}})"), HasSubstr("pairs of tokens without spaces, got \"ab\""));
  EXPECT_THAT(error(R"({"model": {"merges": [["a", " b"]]}})"), HasSubstr("pairs of tokens without spaces"));
  EXPECT_THAT(error(R"({"model": {"merges": null}})"), HasSubstr("model.merges must be an array, got null"));
  EXPECT_THAT(error(R"({"added_tokens": [3]})"), HasSubstr("must be an object with content, got 3"));
  EXPECT_THAT(error(R"({"added_tokens": [{"id": 5, "content": "x", "lstrip": true}]})"),
              HasSubstr("added token \"x\".lstrip must be off"));
}

}  // namespace
}  // namespace adder::weights
