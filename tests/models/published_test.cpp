#include "adder/models/published.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>

#include "adder/core/error.h"
#include "adder/core/files.h"
#include "adder/core/options_io.h"
#include "adder/weights/published_folder.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::tests {
namespace {
namespace fs = std::filesystem;

using models::MambaLM;
using models::MambaLMOptions;
using models::PublishedFormat;
using nlohmann::ordered_json;
using testing::HasSubstr;

// As the card of state-spaces/mamba-130m-hf has it: keys of both packages.
const ordered_json kTransformers = ordered_json::parse(R"({
  "architectures": ["MambaForCausalLM"], "bos_token_id": 0, "conv_kernel": 4, "d_inner": 1536, "d_model": 768,
  "eos_token_id": 0, "expand": 2, "fused_add_norm": true, "hidden_act": "silu", "hidden_size": 768,
  "initializer_range": 0.1, "intermediate_size": 1536, "layer_norm_epsilon": 1e-05, "model_type": "mamba",
  "n_layer": 24, "num_hidden_layers": 24, "pad_token_id": 0, "pad_vocab_size_multiple": 8, "rms_norm": true,
  "ssm_cfg": {}, "state_size": 16, "time_step_rank": 48, "torch_dtype": "float32", "use_bias": false,
  "use_conv_bias": true, "vocab_size": 50280})");
const ordered_json kOriginal = ordered_json::parse(R"({
  "d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true, "residual_in_fp32": true,
  "fused_add_norm": true, "pad_vocab_size_multiple": 8})");

MambaLMOptions read(const ordered_json& config) {
  return models::options_from_config(config, "config.json");
}
std::string refusal(ordered_json config, const char* key, const ordered_json& value) {
  config[key] = value;
  return error_of([&] { read(config); });
}

TEST(PublishedConfig, ThePublished130M) {
  const MambaLMOptions theirs = read(kTransformers), original = read(kOriginal);
  EXPECT_EQ(models::parameter_count(theirs), 129135360);
  EXPECT_EQ(models::parameter_count(original), 129135360);
  EXPECT_EQ(theirs.padded_vocab(), 50280);
  EXPECT_EQ(original.padded_vocab(), 50280);
  EXPECT_EQ(original.vocab_size, 50277);
  EXPECT_TRUE(theirs.tie_embeddings && original.tie_embeddings);
  EXPECT_EQ(theirs.mixer.rank(768), 48);
  EXPECT_EQ(original.mixer.rank(768), 48);
}

TEST(PublishedConfig, EveryKeyOfTransformers) {
  const MambaLMOptions o = read({{"model_type", "falcon_mamba"},
                                 {"hidden_size", 64},
                                 {"num_hidden_layers", 3},
                                 {"vocab_size", 99},
                                 {"state_size", 8},
                                 {"conv_kernel", 3},
                                 {"expand", 4.0},
                                 {"time_step_rank", 7},
                                 {"use_bias", true},
                                 {"use_conv_bias", false},
                                 {"time_step_min", 0.01},
                                 {"time_step_max", 0.2},
                                 {"time_step_floor", 1e-5},
                                 {"time_step_scale", 0.5},
                                 {"time_step_init_scheme", "constant"},
                                 {"layer_norm_epsilon", 1e-6},
                                 {"mixer_rms_eps", 1e-3},
                                 {"tie_word_embeddings", false}});
  EXPECT_EQ(core::to_json(o).dump(),
            core::to_json([] {
              MambaLMOptions e;
              e.d_model = 64, e.n_layer = 3, e.vocab_size = 99, e.pad_vocab_size_multiple = 1;
              e.norm_eps = 1e-6, e.tie_embeddings = false;
              nn::MambaOptions& m = e.mixer;
              m.d_state = 8, m.d_conv = 3, m.expand = 4, m.dt_rank = "7", m.bias = true, m.conv_bias = false;
              m.dt_min = 0.01, m.dt_max = 0.2, m.dt_init_floor = 1e-5, m.dt_scale = 0.5, m.dt_init = "constant";
              m.inner_norm = "rms", m.inner_norm_eps = 1e-3;
              return e;
            }())
                .dump());
}

TEST(PublishedConfig, WhatIsNoMambaIsRefusedByName) {
  EXPECT_THAT(
      refusal(kTransformers, "model_type", "mamba2"),
      "config.json: model_type must be \"mamba\" or \"falcon_mamba\", got \"mamba2\": Mamba-2 is another architecture");
  EXPECT_THAT(refusal(kTransformers, "hidden_act", "gelu"), HasSubstr("hidden_act must be \"silu\", got \"gelu\""));
  EXPECT_THAT(refusal(kTransformers, "intermediate_size", 1000),
              HasSubstr("intermediate_size must be expand x hidden_size = 1536, got 1000"));
  EXPECT_THAT(refusal(kTransformers, "expand", int64_t{1} << 62), HasSubstr("expand must be an integer in [1, 1024]"));
  EXPECT_THAT(refusal(kTransformers, "vocab_size", UINT64_MAX),
              HasSubstr("vocab_size must be a whole number, got 18446744073709551615"));
  EXPECT_THAT(refusal(kTransformers, "hidden_size", "768"),
              HasSubstr("hidden_size must be a whole number, got \"768\""));
  EXPECT_THAT(refusal(kTransformers, "num_hidden_layers", -1), HasSubstr("n_layer"));
  EXPECT_THAT(refusal(kTransformers, "expand", 1.5), HasSubstr("expand must be a whole number, got 1.5"));
  EXPECT_THAT(refusal(kTransformers, "time_step_rank", "many"),
              HasSubstr("time_step_rank must be a whole number or \"auto\", got \"many\""));
  EXPECT_THAT(refusal(kOriginal, "ssm_cfg", {{"layer", "Mamba2"}}),
              HasSubstr("ssm_cfg: layer must be \"Mamba1\", got \"Mamba2\": Mamba-2 is another architecture"));
  EXPECT_THAT(refusal(kOriginal, "ssm_cfg", {{"d_sate", 16}}),
              HasSubstr("unknown key \"d_sate\"; did you mean d_state?"));
  EXPECT_THAT(refusal(kOriginal, "ssm_cfg", 3), HasSubstr("ssm_cfg: must be an object, got number"));
  EXPECT_THAT(refusal(kOriginal, "attn_layer_idx", {1, 3}), HasSubstr("attn_layer_idx must be empty, got [1,3]"));
  EXPECT_THAT(refusal(kOriginal, "d_intermediate", 8), HasSubstr("d_intermediate must be 0, got 8"));
  EXPECT_THAT(error_of([] { read({{"layers", 3}}); }),
              HasSubstr("has neither hidden_size (transformers) nor d_model (the original package)"));
  EXPECT_THAT(error_of([] { read(ordered_json::array()); }), "config.json: must be an object, got array");
}

class Published : public testing::Test {
 protected:
  static MambaLM tiny(const std::function<void(MambaLMOptions&)>& change = {}) {
    torch::manual_seed(3);
    MambaLMOptions o;
    o.d_model = 32, o.vocab_size = 61, o.mixer.d_state = 4;
    if (change) change(o);
    MambaLM model(o);
    model->eval();
    return model;
  }
  static torch::Tensor logits(models::MambaLM& model) {
    const torch::NoGradGuard no_grad;
    return model->forward(torch::arange(22).view({2, 11})).first;
  }
  // Writes it, reads it: the same model.
  void expect_back(MambaLM model, const models::SaveOptions& options) {
    const fs::path folder = folder_.path() / std::to_string(count_++);
    models::save_published(*model, folder, options);
    models::LoadedModel back = models::load_model(folder);
    const torch::Tensor expected = logits(model), got = logits(back.model);
    EXPECT_TRUE(torch::equal(got.slice(-1, 0, expected.size(-1)), expected));
    EXPECT_EQ(back.model->parameter_count(), model->parameter_count());
    EXPECT_EQ(back.stored, options.type);
  }
  fs::path saved(const models::SaveOptions& options = {}) {
    const fs::path folder = folder_.path() / std::to_string(count_++);
    models::save_published(*tiny(), folder, options);
    return folder;
  }
  static std::string loading(const fs::path& folder) {
    return error_of([&] { models::load_model(folder); });
  }
  static void edit(const fs::path& file, const std::function<void(ordered_json&)>& change) {
    ordered_json json;
    {
      const core::MappedFile old(file);
      json = ordered_json::parse(std::string(reinterpret_cast<const char*>(old.bytes().data()), old.bytes().size()));
    }
    change(json);
    core::write_file_atomically(file, json.dump());
  }

  data::TemporaryFolder folder_;
  int count_ = 0;
};

TEST_F(Published, ThereAndBack) {
  const auto untied = [](MambaLMOptions& o) { o.tie_embeddings = false; };
  const auto biases = [](MambaLMOptions& o) { o.mixer.bias = true, o.mixer.conv_bias = false, o.mixer.dt_rank = "3"; };
  const auto layer_norm = [](MambaLMOptions& o) { o.norm = "layer"; };
  const auto inner_norm = [](MambaLMOptions& o) { o.mixer.inner_norm = "rms", o.norm_eps = 1e-6; };
  models::SaveOptions transformers, original, parts;
  original.format = PublishedFormat::kOriginal;
  parts.part_bytes = 5000;
  for (const models::SaveOptions& options : {transformers, original, parts}) {
    expect_back(tiny(), options);
    expect_back(tiny(untied), options);
    expect_back(tiny(biases), options);
  }
  expect_back(tiny(layer_norm), original);
  expect_back(tiny(inner_norm), transformers);
}

TEST_F(Published, SmallerTypesKeepWhatMustStayWide) {
  for (const torch::ScalarType type : {torch::kBFloat16, torch::kHalf})
    for (const PublishedFormat format : {PublishedFormat::kTransformers, PublishedFormat::kOriginal}) {
      MambaLM model = tiny();
      model->cast_weights(type);
      const MambaLM rounded = tiny();
      const torch::NoGradGuard no_grad;
      for (auto& parameter : rounded->named_parameters())
        parameter.value().copy_(model->named_parameters()[parameter.key()]);
      models::SaveOptions options;
      options.type = type, options.format = format;
      expect_back(rounded, options);
    }
}

TEST_F(Published, WhatDoesNotFitIsToldTensorByTensor) {
  const fs::path folder = saved();
  edit(folder / "config.json", [](ordered_json& c) { c["state_size"] = 8, c["use_bias"] = true; });
  const std::string told = loading(folder);
  EXPECT_THAT(told, HasSubstr("missing: backbone.layers.0.mixer.in_proj.bias"));
  EXPECT_THAT(told, HasSubstr("missing: backbone.layers.1.mixer.out_proj.bias"));
  EXPECT_THAT(told, HasSubstr("backbone.layers.0.mixer.A_log: must have shape (64, 8), got (64, 4)"));
  edit(folder / "config.json",
       [](ordered_json& c) { c["state_size"] = 4, c["use_bias"] = false, c["num_hidden_layers"] = 1; });
  EXPECT_THAT(loading(folder), HasSubstr("surplus: backbone.layers.1.mixer.A_log"));
  edit(folder / "config.json", [](ordered_json& c) { c["num_hidden_layers"] = 60000; });
  EXPECT_THAT(loading(folder), HasSubstr("the weights hold"));
}

TEST_F(Published, PartsMustBeThereAndInTheFolder) {
  models::SaveOptions options;
  options.part_bytes = 5000;
  const fs::path folder = saved(options), index = folder / "model.safetensors.index.json";
  ASSERT_TRUE(fs::exists(index));
  const std::string tensor = "backbone.norm_f.weight";
  edit(index, [&](ordered_json& i) { i["weight_map"][tensor] = "../model.safetensors"; });
  EXPECT_THAT(loading(folder), HasSubstr("tensor \"backbone.norm_f.weight\": its file must lie in the same folder"));
  edit(index, [&](ordered_json& i) { i["weight_map"][tensor] = "model-00099-of-00099.safetensors"; });
  EXPECT_THAT(loading(folder), HasSubstr("the part 'model-00099-of-00099.safetensors'"));
  edit(index, [&](ordered_json& i) {
    i["weight_map"][tensor] =
        "model-00001-of-" + i["weight_map"]["backbone.embeddings.weight"].get<std::string>().substr(15);
  });
  EXPECT_THAT(loading(folder), HasSubstr("has no tensor \"backbone.norm_f.weight\", which the index says is there"));
  core::write_file_atomically(index, "{}");
  EXPECT_THAT(loading(folder), HasSubstr("must hold an object \"weight_map\""));
  fs::remove(index);
  EXPECT_THAT(loading(folder), HasSubstr("has no weights: neither model.safetensors nor pytorch_model.bin"));
}

TEST_F(Published, ATiedHeadMustBeTheEmbedding) {
  models::SaveOptions original;
  original.format = PublishedFormat::kOriginal;
  const fs::path tied = saved(original), untied = folder_.path() / "untied";
  EXPECT_EQ(loading(tied), "no error");
  models::save_published(*tiny([](MambaLMOptions& o) { o.tie_embeddings = false; }), untied, original);
  edit(untied / "config.json", [](ordered_json& c) { c["tie_embeddings"] = true; });
  EXPECT_THAT(loading(untied), HasSubstr("lm_head.weight and backbone.embedding.weight differ"));
}

TEST_F(Published, WhatAFormatHasNoWordForIsRefused) {
  const auto refused = [&](PublishedFormat format, const std::function<void(MambaLMOptions&)>& change) {
    models::SaveOptions options;
    options.format = format;
    const fs::path folder = folder_.path() / "refused";
    const std::string told = error_of([&] { models::save_published(*tiny(change), folder, options); });
    EXPECT_FALSE(fs::exists(folder));
    return told;
  };
  const PublishedFormat original = PublishedFormat::kOriginal, transformers = PublishedFormat::kTransformers;
  EXPECT_EQ(refused(original, [](auto& o) { o.mixer.inner_norm = "rms"; }),
            "the original package has no model with model.mixer.inner_norm = rms");
  EXPECT_EQ(refused(transformers, [](auto& o) { o.norm = "layer"; }),
            "transformers has no model with model.norm = layer");
  EXPECT_EQ(refused(transformers, [](auto& o) { o.mixer.complex = true; }),
            "transformers has no model with model.mixer.complex = true");
  EXPECT_EQ(refused(original, [](auto& o) { o.mixer.discretization = "zoh"; }),
            "the original package has no model with model.mixer.discretization = zoh");
  EXPECT_EQ(refused(original, [](auto& o) { o.mixer.dt_rank = "none"; }),
            "the original package has no model with model.mixer.dt_rank = none");
}

TEST_F(Published, NothingIsWrittenOver) {
  const fs::path folder = saved();
  EXPECT_THAT(error_of([&] { models::save_published(*tiny(), folder, {}); }),
              HasSubstr("is there already; nothing is written over"));
  EXPECT_EQ(loading(folder), "no error");
}

TEST_F(Published, FilesBesidesAreCopied) {
  core::write_file_atomically(folder_.path() / "mine.json", "{}");
  models::SaveOptions options;
  options.besides = {{"tokenizer.json", folder_.path() / "mine.json"}};
  EXPECT_TRUE(fs::exists(saved(options) / "tokenizer.json"));
}

}  // namespace
}  // namespace adder::tests
