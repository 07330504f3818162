#include <algorithm>
#include <cmath>

#include "adder/core/check.h"
#include "adder/core/nearest_name.h"
#include "adder/core/options_io.h"
#include "adder/models/published.h"
#include "adder/weights/safetensors_header.h"

namespace adder::models {
using nlohmann::ordered_json;
namespace {

// The keys of an object, read by type; a key that is absent or null leaves what stands.
class Keys {
 public:
  Keys(const ordered_json& object, std::string where) : object_(object), where_(std::move(where)) {
    ADDER_CHECK(object.is_object(), "{}: must be an object, got {}", where_, object.type_name());
  }

  const ordered_json* find(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  void read(const char* key, int64_t& to) const {
    const ordered_json* const value = find(key);
    if (value == nullptr) return;
    const bool whole =
        value->is_number_unsigned()
            ? value->get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX)
            : value->is_number_integer() || (value->is_number_float() && std::abs(value->get<double>()) < 1e15 &&
                                             value->get<double>() == std::floor(value->get<double>()));
    ADDER_CHECK(whole, "{}: {} must be a whole number, got {}", where_, key, value->dump());
    to = value->is_number_float() ? static_cast<int64_t>(value->get<double>()) : value->get<int64_t>();
  }
  void read(const char* key, double& to) const {
    const ordered_json* const value = find(key);
    if (value == nullptr) return;
    ADDER_CHECK(value->is_number(), "{}: {} must be a number, got {}", where_, key, value->dump());
    to = value->get<double>();
  }
  void read(const char* key, bool& to) const {
    const ordered_json* const value = find(key);
    if (value == nullptr) return;
    ADDER_CHECK(value->is_boolean(), "{}: {} must be true or false, got {}", where_, key, value->dump());
    to = value->get<bool>();
  }
  void read(const char* key, std::string& to) const {
    const ordered_json* const value = find(key);
    if (value == nullptr) return;
    ADDER_CHECK(value->is_string(), "{}: {} must be a text, got {}", where_, key, value->dump());
    to = value->get<std::string>();
  }
  // A number, or "auto".
  void read_rank(const char* key, std::string& to) const {
    const ordered_json* const value = find(key);
    if (value == nullptr) return;
    if (value->is_string()) {
      ADDER_CHECK(value->get<std::string>() == "auto", "{}: {} must be a whole number or \"auto\", got {}", where_, key,
                  value->dump());
      to = "auto";
    } else {
      int64_t rank = 0;
      read(key, rank);
      to = std::to_string(rank);
    }
  }
  void check_is(const char* key, const std::string& expected, const std::string& why) const {
    std::string got = expected;
    read(key, got);
    ADDER_CHECK(got == expected, "{}: {} must be \"{}\", got \"{}\": {}", where_, key, expected, got, why);
  }
  const std::string& where() const { return where_; }
  const ordered_json& object() const { return object_; }

 private:
  const ordered_json& object_;
  std::string where_;
};

MambaLMOptions from_transformers(const Keys& keys) {
  std::string type;
  keys.read("model_type", type);
  const bool falcon = type == "falcon_mamba";
  ADDER_CHECK(falcon || type == "mamba", "{}: model_type must be \"mamba\" or \"falcon_mamba\", got \"{}\"{}",
              keys.where(), type, type == "mamba2" ? ": Mamba-2 is another architecture" : "");
  // What transformers takes where a key is absent.
  MambaLMOptions o;
  o.d_model = 768, o.n_layer = 32, o.vocab_size = 50280, o.pad_vocab_size_multiple = 1;
  keys.read("hidden_size", o.d_model);
  keys.read("num_hidden_layers", o.n_layer);
  keys.read("vocab_size", o.vocab_size);
  keys.read("layer_norm_epsilon", o.norm_eps);
  keys.read("tie_word_embeddings", o.tie_embeddings);
  nn::MambaOptions& m = o.mixer;
  keys.read("state_size", m.d_state);
  keys.read("conv_kernel", m.d_conv);
  keys.read("expand", m.expand);
  keys.read_rank("time_step_rank", m.dt_rank);
  keys.read("use_bias", m.bias);
  keys.read("use_conv_bias", m.conv_bias);
  keys.read("time_step_min", m.dt_min);
  keys.read("time_step_max", m.dt_max);
  keys.read("time_step_floor", m.dt_init_floor);
  keys.read("time_step_scale", m.dt_scale);
  keys.read("time_step_init_scheme", m.dt_init);
  keys.check_is("hidden_act", "silu", "no other activation is known here");
  if (falcon) {
    m.inner_norm = "rms";
    keys.read("mixer_rms_eps", m.inner_norm_eps);
  }
  return o;
}

MambaLMOptions from_original(const Keys& keys) {
  for (const char* key : {"d_model", "n_layer"})
    ADDER_CHECK(keys.find(key) != nullptr,
                "{}: has neither hidden_size (transformers) nor {} (the original package): not the configuration of a "
                "Mamba language model",
                keys.where(), key);
  MambaLMOptions o;
  o.vocab_size = 50277, o.pad_vocab_size_multiple = 8;
  keys.read("d_model", o.d_model);
  keys.read("n_layer", o.n_layer);
  keys.read("vocab_size", o.vocab_size);
  keys.read("pad_vocab_size_multiple", o.pad_vocab_size_multiple);
  keys.read("tie_embeddings", o.tie_embeddings);
  bool rms = true;
  keys.read("rms_norm", rms);
  o.norm = rms ? "rms" : "layer";
  int64_t mlp = 0;
  keys.read("d_intermediate", mlp);
  ADDER_CHECK(mlp == 0, "{}: d_intermediate must be 0, got {}: blocks with an MLP are another architecture",
              keys.where(), mlp);
  const ordered_json* const attention = keys.find("attn_layer_idx");
  ADDER_CHECK(attention == nullptr || attention->empty(),
              "{}: attn_layer_idx must be empty, got {}: layers of attention are another architecture", keys.where(),
              attention == nullptr ? "" : attention->dump());
  const ordered_json* const mixer = keys.find("ssm_cfg");
  if (mixer == nullptr) return o;
  const Keys of_mixer(*mixer, keys.where() + ": ssm_cfg");
  of_mixer.check_is("layer", "Mamba1", "Mamba-2 is another architecture");
  const std::vector<std::string> known = {"layer",     "d_state", "d_conv",       "expand",   "dt_rank",
                                          "dt_min",    "dt_max",  "dt_init",      "dt_scale", "dt_init_floor",
                                          "conv_bias", "bias",    "use_fast_path"};
  for (const auto& [key, value] : mixer->items()) {
    if (std::ranges::find(known, key) != known.end()) continue;
    const auto nearest = core::nearest_name(key, known);
    fail("{}: unknown key {}{}", of_mixer.where(), weights::shown_name(key),
         nearest ? fmt::format("; did you mean {}?", *nearest) : "");
  }
  nn::MambaOptions& m = o.mixer;
  of_mixer.read("d_state", m.d_state);
  of_mixer.read("d_conv", m.d_conv);
  of_mixer.read("expand", m.expand);
  of_mixer.read_rank("dt_rank", m.dt_rank);
  of_mixer.read("dt_min", m.dt_min);
  of_mixer.read("dt_max", m.dt_max);
  of_mixer.read("dt_init", m.dt_init);
  of_mixer.read("dt_scale", m.dt_scale);
  of_mixer.read("dt_init_floor", m.dt_init_floor);
  of_mixer.read("conv_bias", m.conv_bias);
  of_mixer.read("bias", m.bias);
  return o;
}

// Throws where a published model cannot be what the options say.
void check_expressible(const MambaLMOptions& o, PublishedFormat format) {
  const nn::MambaOptions& m = o.mixer;
  const char* const name = format == PublishedFormat::kOriginal ? "the original package" : "transformers";
  const auto must = [&](bool holds, const char* option, const std::string& got) {
    ADDER_CHECK(holds, "{} has no model with {} = {}", name, option, got);
  };
  must(!m.complex, "model.mixer.complex", "true");
  must(m.discretization == "euler", "model.mixer.discretization", m.discretization);
  must(m.selective_B, "model.mixer.selective_B", "false");
  must(m.selective_C, "model.mixer.selective_C", "false");
  must(m.dt_rank != "none", "model.mixer.dt_rank", m.dt_rank);
  if (format == PublishedFormat::kOriginal) {
    must(m.inner_norm == "none", "model.mixer.inner_norm", m.inner_norm);
    must(o.norm_eps == 1e-5, "model.norm_eps", fmt::format("{}", o.norm_eps));
  } else {
    must(o.norm == "rms", "model.norm", o.norm);
  }
}

const char* type_name(torch::ScalarType type) {
  return type == torch::kBFloat16 ? "bfloat16" : type == torch::kHalf ? "float16" : "float32";
}

}  // namespace

MambaLMOptions options_from_config(const ordered_json& config, const std::string& where) {
  const Keys keys(config, where);
  const bool transformers = keys.find("hidden_size") != nullptr || keys.find("model_type") != nullptr;
  MambaLMOptions options = transformers ? from_transformers(keys) : from_original(keys);
  // The options' own rules: ranges and choices.
  MambaLMOptions checked;
  core::from_json(checked, core::to_json(options), where);
  (void)checked.mixer.rank(checked.d_model);
  if (transformers) {
    const int64_t expected = checked.mixer.expand * checked.d_model;
    int64_t inner = expected;
    keys.read("intermediate_size", inner);
    ADDER_CHECK(inner == expected, "{}: intermediate_size must be expand x hidden_size = {}, got {}", where, expected,
                inner);
  }
  return checked;
}

ordered_json config_for(const MambaLMOptions& o, PublishedFormat format, torch::ScalarType type) {
  check_expressible(o, format);
  const nn::MambaOptions& m = o.mixer;
  if (format == PublishedFormat::kOriginal) {
    ordered_json mixer = {{"d_state", m.d_state},     {"d_conv", m.d_conv},
                          {"expand", m.expand},       {"dt_min", m.dt_min},
                          {"dt_max", m.dt_max},       {"dt_init", m.dt_init},
                          {"dt_scale", m.dt_scale},   {"dt_init_floor", m.dt_init_floor},
                          {"conv_bias", m.conv_bias}, {"bias", m.bias}};
    if (m.dt_rank == "auto")
      mixer["dt_rank"] = "auto";
    else
      mixer["dt_rank"] = m.rank(o.d_model);
    return {{"d_model", o.d_model},
            {"d_intermediate", 0},
            {"n_layer", o.n_layer},
            {"vocab_size", o.vocab_size},
            {"ssm_cfg", mixer},
            {"attn_layer_idx", ordered_json::array()},
            {"attn_cfg", ordered_json::object()},
            {"rms_norm", o.norm == "rms"},
            {"residual_in_fp32", true},
            {"fused_add_norm", true},
            {"pad_vocab_size_multiple", o.pad_vocab_size_multiple},
            {"tie_embeddings", o.tie_embeddings}};
  }
  const bool falcon = m.inner_norm == "rms";
  ordered_json config = {{"architectures", {falcon ? "FalconMambaForCausalLM" : "MambaForCausalLM"}},
                         {"model_type", falcon ? "falcon_mamba" : "mamba"},
                         {"dtype", type_name(type)},
                         {"hidden_size", o.d_model},
                         {"num_hidden_layers", o.n_layer},
                         {"vocab_size", o.padded_vocab()},
                         {"state_size", m.d_state},
                         {"conv_kernel", m.d_conv},
                         {"expand", m.expand},
                         {"intermediate_size", m.expand * o.d_model},
                         {"time_step_rank", m.rank(o.d_model)},
                         {"time_step_min", m.dt_min},
                         {"time_step_max", m.dt_max},
                         {"time_step_floor", m.dt_init_floor},
                         {"time_step_scale", m.dt_scale},
                         {"time_step_init_scheme", m.dt_init},
                         {"use_bias", m.bias},
                         {"use_conv_bias", m.conv_bias},
                         {"hidden_act", "silu"},
                         {"layer_norm_epsilon", o.norm_eps},
                         {"residual_in_fp32", true},
                         {"tie_word_embeddings", o.tie_embeddings}};
  if (falcon) config["mixer_rms_eps"] = m.inner_norm_eps;
  return config;
}

}  // namespace adder::models
