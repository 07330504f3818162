// Models of ours through llama.cpp: its Python package runs as a child, from the interpreter that
// ADDER_LLAMA_CPP_PYTHON names or .venv's.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "adder/core/error.h"
#include "adder/core/files.h"
#include "adder/models/mamba_lm.h"
#include "adder/weights/gguf_mamba.h"
#include "tests/tolerances.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;

const std::string kSource = ADDER_SOURCE_DIR;

std::string interpreter() {
  const char* named = std::getenv("ADDER_LLAMA_CPP_PYTHON");
  return named ? named : kSource + "/.venv/bin/python";
}

GgufMamba described(const models::MambaLM& model) {
  const models::MambaLMOptions& o = model->options();
  GgufMamba out;
  out.name = "test";
  out.d_model = o.d_model;
  out.n_layer = o.n_layer;
  out.vocab_size = o.vocab_size;
  out.d_inner = o.mixer.expand * o.d_model;
  out.d_state = o.mixer.d_state;
  out.d_conv = o.mixer.d_conv;
  out.dt_rank = o.mixer.rank(o.d_model);
  out.norm_eps = o.norm_eps;
  out.inner_norm = o.mixer.inner_norm == "rms";
  out.inner_norm_eps = o.mixer.inner_norm_eps;
  for (const auto& item : model->named_parameters()) out.tensors.emplace_back(item.key(), item.value());
  return out;
}

// Weights so large that what comes next depends on more than the last token.
models::MambaLM lively_model(const models::MambaLMOptions& options) {
  torch::manual_seed(3);
  torch::NoGradGuard no_grad;
  models::MambaLM model(options);
  for (const auto& item : model->named_parameters()) {
    const std::string& name = item.key();
    if (name.ends_with("embedding.weight")) item.value().mul_(10);
    if (name.ends_with("lm_head.weight")) item.value().mul_(8);
    if (name.ends_with("proj.weight")) item.value().mul_(3);
    if (name.ends_with("norm.weight") || name.ends_with("norm_f.weight")) item.value().uniform_(0.5, 1.5);
    if (name.ends_with(".D")) item.value().uniform_(-1, 1);
  }
  model->eval();
  return model;
}

class LlamaCpp : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(interpreter())) GTEST_SKIP() << "no Python at " << interpreter();
    std::string name = testing::TempDir() + "adder_llama_cpp_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    if (run("-c 'import llama_cpp, numpy'").first != 0)
      GTEST_SKIP() << interpreter() << " has no llama-cpp-python (ADDER_LLAMA_CPP_PYTHON names another Python)";
  }
  void TearDown() override {
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  // Exit status and standard output; errors go to the test's.
  std::pair<int, std::string> run(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.string() + "' && '" + interpreter() + "' " + arguments + " 2>errors";
    FILE* pipe = ::popen(command.c_str(), "r");
    if (!pipe) return {-1, "cannot start a shell"};
    std::string output;
    char buffer[4096];
    while (const size_t count = std::fread(buffer, 1, sizeof(buffer), pipe)) output.append(buffer, count);
    const int status = ::pclose(pipe);
    if (status != 0) output += read("errors");
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, output};
  }

  std::string peer(const std::string& arguments) const {
    const auto [status, output] = run("'" + kSource + "/tests/peers/run_llama_cpp.py' " + arguments);
    EXPECT_EQ(status, 0) << output;
    return output;
  }

  std::string read(const std::string& name) const {
    const core::MappedFile file(folder_ / name);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }

  void write_ids(const torch::Tensor& ids) const {
    std::ofstream out(folder_ / "ids");
    for (int64_t i = 0; i < ids.numel(); ++i) out << ids.flatten()[i].item<int64_t>() << ' ';
  }

  // 200 ids (1, 200) and llama.cpp's logits (200, vocab).
  std::pair<torch::Tensor, torch::Tensor> their_logits(int64_t vocab) const {
    const torch::Tensor ids = torch::randint(0, vocab, {1, 200}, torch::kLong);
    write_ids(ids);
    peer("logits model.gguf ids logits");
    const std::string raw = read("logits");
    torch::Tensor logits = torch::full({200, vocab}, NAN);
    EXPECT_EQ(raw.size(), logits.nbytes());
    if (raw.size() == logits.nbytes()) std::memcpy(logits.mutable_data_ptr(), raw.data(), raw.size());
    return {ids, logits};
  }

  static double difference_between(const torch::Tensor& got, const torch::Tensor& wanted) {
    return ((got.to(torch::kFloat) - wanted).abs().max() / wanted.abs().max()).item<double>();
  }

  double logits_difference(models::MambaLM& model) const {
    torch::NoGradGuard no_grad;
    const auto [ids, theirs] = their_logits(model->options().vocab_size);
    const torch::Tensor ours = model->forward(ids).first[0];
    EXPECT_GT(ours.std().item<double>(), 0.1);
    return difference_between(theirs, ours);
  }

  // llama.cpp's greedy tokens must be ours, or lie as close to the largest as logits may differ.
  void check_greedy(models::MambaLM& model) const {
    torch::NoGradGuard no_grad;
    constexpr int64_t kPrompt = 16, kNew = 64;
    const torch::Tensor prompt = torch::randint(0, model->options().vocab_size, {1, kPrompt}, torch::kLong);
    write_ids(prompt);
    std::istringstream words(peer("greedy model.gguf ids " + std::to_string(kNew)));
    std::vector<int64_t> tokens;
    for (int64_t token; words >> token;) tokens.push_back(token);
    ASSERT_EQ(tokens.size(), static_cast<size_t>(kNew));
    const std::set<int64_t> distinct(tokens.begin(), tokens.end());
    EXPECT_GE(distinct.size(), 32u);
    const torch::Tensor all = torch::cat({prompt, torch::tensor(tokens, torch::kLong).unsqueeze(0)}, 1);
    const torch::Tensor logits = model->forward(all).first[0].narrow(0, kPrompt - 1, kNew).to(torch::kFloat);
    const torch::Tensor taken = logits.gather(1, all[0].narrow(0, kPrompt, kNew).unsqueeze(1)).squeeze(1);
    const auto [best, index] = logits.max(1);
    const int64_t same = (index == all[0].narrow(0, kPrompt, kNew)).sum().item<int64_t>();
    const double gap = ((best - taken) / logits.abs().max()).max().item<double>();
    EXPECT_LE(gap, tests::kPeerLogits);
    std::printf("greedy: %d of %d tokens equal, %d distinct, largest gap %.2e\n", static_cast<int>(same),
                static_cast<int>(kNew), static_cast<int>(distinct.size()), gap);
  }

  void check_model(models::MambaLM model, const GgufTokenizer* tokenizer = nullptr) const {
    write_gguf(folder_ / "model.gguf", described(model), torch::kFloat, tokenizer);
    const double difference = logits_difference(model);
    std::printf("logits: largest difference by the largest logit %.2e\n", difference);
    EXPECT_LE(difference, tests::kPeerLogits);
    check_greedy(model);
  }

  fs::path folder_;
};

models::MambaLMOptions small_options() {
  models::MambaLMOptions o;
  o.d_model = 64;
  o.n_layer = 3;
  o.vocab_size = 256;
  o.tie_embeddings = false;
  return o;
}

TEST_F(LlamaCpp, AModelOfBytesRunsAlike) {
  const GgufTokenizer tokenizer = byte_tokenizer(256);
  check_model(lively_model(small_options()), &tokenizer);
  std::ofstream(folder_ / "texts") << nlohmann::json({"a b\n\xc3\xa9"});
  EXPECT_EQ(peer("tokens model.gguf texts"), "[97, 32, 98, 10, 195, 169]\n");
}

TEST_F(LlamaCpp, OtherSizesRunAlike) {
  models::MambaLMOptions o = small_options();
  o.d_model = 48;
  o.vocab_size = 301;  // padded to 304
  o.norm_eps = 1e-3;
  o.mixer.d_state = 8;
  o.mixer.d_conv = 3;
  o.mixer.dt_rank = "5";
  check_model(lively_model(o));
}

TEST_F(LlamaCpp, ASingleStateAndNoConvolutionRunAlike) {
  models::MambaLMOptions o = small_options();
  o.mixer.d_state = 1;
  o.mixer.d_conv = 1;
  check_model(lively_model(o));
}

TEST_F(LlamaCpp, InnerNormsRunAlike) {
  models::MambaLMOptions o = small_options();
  o.mixer.inner_norm = "rms";
  o.mixer.inner_norm_eps = o.norm_eps;
  check_model(lively_model(o));
}

TEST_F(LlamaCpp, ATiedHeadRunsAlike) {
  models::MambaLMOptions o = small_options();
  o.tie_embeddings = true;
  models::MambaLM model = lively_model(o);
  write_gguf(folder_ / "model.gguf", described(model), torch::kFloat);
  EXPECT_LE(logits_difference(model), tests::kPeerLogits);
}

// Against float32 activations over the rounded weights. llama.cpp rounds what enters a product: it may be off twice as
// far as we are with activations of that type.
TEST_F(LlamaCpp, NarrowTypesRunAlike) {
  torch::NoGradGuard no_grad;
  for (const auto type : {torch::kHalf, torch::kBFloat16}) {
    models::MambaLM model = lively_model(small_options());
    write_gguf(folder_ / "model.gguf", described(model), type);
    for (const auto& item : model->named_parameters()) {
      const std::string& name = item.key();
      if (name.ends_with("proj.weight") || name.ends_with("embedding.weight") || name.ends_with("head.weight"))
        item.value().copy_(item.value().to(type));
    }
    const auto [ids, theirs] = their_logits(model->options().vocab_size);
    const torch::Tensor exact = model->forward(ids).first[0];
    model->cast_weights(type);
    const torch::Tensor ours = model->forward(ids).first[0];
    const double their_error = difference_between(theirs, exact), our_error = difference_between(ours, exact);
    std::printf("logits, %s: largest error by the largest logit %.2e, ours %.2e\n", c10::toString(type), their_error,
                our_error);
    EXPECT_LE(their_error, 2 * our_error);
  }
}

TEST_F(LlamaCpp, TheGptNeoXTokenizerAndItsVocabularyRunAlike) {
  const char* file = std::getenv("ADDER_GPT_NEOX_TOKENIZER");
  if (!file) GTEST_SKIP() << "ADDER_GPT_NEOX_TOKENIZER does not name a tokenizer.json";
  const nlohmann::json json = nlohmann::json::parse(std::ifstream(file));
  const GgufTokenizer tokenizer = tokenizer_from_json(json, 50280);
  models::MambaLMOptions o = small_options();
  o.d_model = 128;
  o.vocab_size = 50280;
  check_model(lively_model(o), &tokenizer);

  const nlohmann::json texts = {
      "Hello, world! It's 1,234.5 o'clock; we'll see.",
      "  two  spaces\n\n\ttab\n    four\n        eight and" + std::string(40, ' ') + "end",
      "na\u00efve caf\u00e9 \u65e5\u672c\u8a9e \u041f\u0440\u0438\u0432\u0435\u0442 \U0001F999",
      "def f(x):\n    return x**2  # don't\n",
      "<|endoftext|>A text.<|endoftext|><|padding|> Another",
      "",
      " ",
      "trailing   "};
  std::ofstream(folder_ / "texts") << texts;
  core::write_file_atomically(folder_ / "theirs.py", R"(
import json, sys, tokenizers
tokenizer = tokenizers.Tokenizer.from_file(sys.argv[1])
for text in json.load(open("texts")): print(json.dumps(tokenizer.encode(text).ids))
)");
  const auto [status, wanted] = run("theirs.py '" + fs::absolute(file).string() + "'");
  if (status != 0) GTEST_SKIP() << "no tokenizers package to compare the tokens with: " << wanted;
  EXPECT_EQ(peer("tokens model.gguf texts"), wanted);
}

}  // namespace
}  // namespace adder::weights
