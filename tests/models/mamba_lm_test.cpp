#include "adder/models/mamba_lm.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

namespace adder::tests {
namespace {

using models::MambaLM;
using models::MambaLMOptions;
using torch::Tensor;

MambaLMOptions sized(int64_t layers, int64_t width, int64_t vocab) {
  MambaLMOptions options;
  options.n_layer = layers;
  options.d_model = width;
  options.vocab_size = vocab;
  return options;
}

int64_t count(const torch::nn::Module& module) {
  int64_t sum = 0;
  for (const Tensor& parameter : module.parameters()) sum += parameter.numel();
  return sum;
}

// From one block of full size, so that no large embedding and no second block is drawn. SumOfTheParts shows that it is
// the count of the whole.
int64_t counted_by_parts(const MambaLMOptions& o) {
  const c10::InferenceMode no_gradients;
  const int64_t matrices = o.tie_embeddings ? 1 : 2;
  return matrices * o.padded_vocab() * o.d_model +
         o.n_layer * count(*nn::Block(o.d_model, o.mixer, o.n_layer, o.norm, o.norm_eps, 0)) +
         count(*nn::Norm(o.d_model, o.norm, o.norm_eps));
}

TEST(ParameterCount, SumOfTheParts) {
  const auto expect_sum = [](const MambaLMOptions& options) {
    const MambaLM model(options);
    EXPECT_EQ(model->parameter_count(), counted_by_parts(options));
    EXPECT_EQ(model->parameter_count(), count(*model));
    EXPECT_EQ(models::parameter_count(options), count(*model));
  };
  for (const int64_t layers : {1, 2, 11, 24})
    for (const int64_t vocab : {1, 24, 50277}) {
      MambaLMOptions options = sized(layers, 8, vocab);
      expect_sum(options);
      options.tie_embeddings = false;
      options.norm = "layer";
      options.mixer.dt_rank = "3";
      options.mixer.selective_B = options.mixer.selective_C = false;
      expect_sum(options);
    }
}

// Section 0 of the settings: the published models, with the GPT-NeoX vocabulary padded to 50,280.
TEST(ParameterCount, PublishedModels) {
  EXPECT_EQ(sized(1, 1, 50277).padded_vocab(), 50280);
  EXPECT_EQ(counted_by_parts(sized(24, 768, 50277)), 129135360);
  EXPECT_NEAR(counted_by_parts(sized(48, 1024, 50277)), 371.5e6, 0.05e6);
  EXPECT_NEAR(counted_by_parts(sized(48, 1536, 50277)), 793.2e6, 0.05e6);
  EXPECT_NEAR(counted_by_parts(sized(48, 2048, 50277)), 1372.2e6, 0.05e6);
  EXPECT_NEAR(counted_by_parts(sized(64, 2560, 50277)), 2768.3e6, 0.05e6);
}

double millions_350(const std::function<void(nn::MambaOptions&)>& change) {
  MambaLMOptions options = sized(48, 1024, 50257);
  change(options.mixer);
  return static_cast<double>(counted_by_parts(options)) / 1e6;
}

// Table 9: the rank of the delta projection.
TEST(ParameterCount, Table9) {
  const std::pair<const char*, double> rows[] = {{"none", 358.9}, {"1", 359.1},  {"2", 359.3},  {"4", 359.7},
                                                 {"8", 360.5},    {"16", 362.1}, {"32", 365.2}, {"64", 371.5}};
  for (const auto& [rank, expected] : rows)
    EXPECT_NEAR(millions_350([&](auto& o) { o.dt_rank = rank; }), expected, 0.05) << rank;
}

// Table 10: the number of states, with selective and with constant B and C.
TEST(ParameterCount, Table10) {
  const std::pair<int64_t, double> rows[] = {{1, 367.1}, {2, 367.4}, {4, 368.0}, {8, 369.1}, {16, 371.5}};
  for (const auto& [state, expected] : rows)
    for (const bool selective : {true, false})
      EXPECT_NEAR(millions_350([&](auto& o) {
                    o.d_state = state;
                    o.selective_B = o.selective_C = selective;
                  }),
                  expected, 0.05)
          << state << selective;
}

TEST(MambaLMNames, ArePublished) {
  MambaLM model(sized(2, 16, 20));
  const auto parameters = model->named_parameters();
  for (const char* name :
       {"backbone.embedding.weight", "backbone.layers.0.norm.weight", "backbone.layers.1.mixer.in_proj.weight",
        "backbone.layers.1.mixer.A_log", "backbone.norm_f.weight"})
    EXPECT_TRUE(parameters.contains(name)) << name;
  EXPECT_FALSE(parameters.contains("lm_head.weight"));
  EXPECT_EQ(parameters["backbone.embedding.weight"].sizes(),
            torch::IntArrayRef({24, 16}));  // padded to a multiple of 8
  MambaLMOptions untied = sized(2, 16, 20);
  untied.tie_embeddings = false;
  EXPECT_TRUE(MambaLM(untied)->named_parameters().contains("lm_head.weight"));
}

TEST(MambaLMForward, PaddedVocabularyTakesNoPart) {
  torch::manual_seed(0);
  MambaLM model(sized(2, 16, 21));
  const Tensor ids = torch::randint(21, {2, 9}, torch::kLong), targets = torch::randint(21, {2, 9}, torch::kLong);
  const Tensor logits = model->forward(ids).first;
  EXPECT_EQ(logits.sizes(), torch::IntArrayRef({2, 9, 21}));
  const Tensor expected = torch::cross_entropy_loss(logits.reshape({-1, 21}), targets.reshape({-1}));
  EXPECT_NEAR(model->loss(ids, targets).mean.item<double>(), expected.item<double>(), 1e-5);
}

TEST(MambaLMForward, LossAndGradientsInPieces) {
  torch::manual_seed(1);
  for (const char* norm : {"rms", "layer"}) {
    MambaLMOptions options = sized(2, 24, 16);
    options.norm = norm;
    MambaLM model(options);
    const Tensor ids = torch::randint(16, {3, 18}, torch::kLong), targets = torch::randint(16, {3, 18}, torch::kLong);
    model->loss(ids, targets).mean.backward();
    std::vector<Tensor> expected;
    for (Tensor& p : model->parameters()) {
      expected.push_back(p.grad().clone());
      p.mutable_grad() = Tensor();
    }
    models::LMState state;
    Tensor sum = torch::zeros({});
    int64_t at = 0;
    for (const int64_t length : {0, 1, 4, 0, 2, 11}) {
      const auto loss = model->loss(ids.narrow(1, at, length), targets.narrow(1, at, length), state);
      sum = sum + loss.mean * static_cast<double>(length) / 18.0;
      state = loss.state;
      at += length;
    }
    sum.backward();
    const auto parameters = model->parameters();
    for (size_t i = 0; i < parameters.size(); ++i)
      EXPECT_LT((parameters[i].grad() - expected[i]).abs().max().item<double>(),
                1e-5 + 1e-4 * expected[i].abs().max().item<double>());
  }
}

// The gradient of a tied embedding comes from its rows and from the head: against the logits' own cross entropy, with
// fewer tokens than rows and with more, tokens that repeat, twice through the same graph, and added to an earlier one.
TEST(MambaLMForward, GradientOfTheTiedEmbedding) {
  for (const int64_t length : {7, 40}) {
    torch::manual_seed(3);
    MambaLM model(sized(1, 8, 24));
    const Tensor ids = torch::randint(12, {2, length}, torch::kLong), targets = torch::randint(24, {2, length});
    const Tensor embedding = model->named_parameters()["backbone.embedding.weight"];
    const auto gradient = [&](const Tensor& loss) {
      return torch::autograd::grad({loss}, {embedding}, {}, /*retain_graph=*/true)[0];
    };
    const Tensor expected =
        gradient(torch::cross_entropy_loss(model->forward(ids).first.reshape({-1, 24}), targets.flatten()));
    const Tensor loss = model->loss(ids, targets).mean;
    EXPECT_TRUE(torch::allclose(gradient(loss), expected, 1e-4, 1e-7)) << length;
    EXPECT_TRUE(torch::allclose(gradient(loss), expected, 1e-4, 1e-7)) << length << " again";
    loss.backward();
    model->loss(ids, targets).mean.backward();
    EXPECT_TRUE(torch::allclose(embedding.grad(), 2 * expected, 1e-4, 1e-7)) << length << " twice";
  }
}

TEST(MambaLMForward, DropoutOnlyInTraining) {
  MambaLMOptions options = sized(2, 24, 16);
  options.residual_dropout = 0.5;
  options.embedding_dropout = 0.5;
  MambaLM model(options);
  const torch::NoGradGuard no_grad;
  const Tensor ids = torch::randint(16, {1, 8}, torch::kLong);
  model->eval();
  EXPECT_TRUE(torch::equal(model->forward(ids).first, model->forward(ids).first));
  model->train();
  EXPECT_FALSE(torch::equal(model->forward(ids).first, model->forward(ids).first));
}

TEST(MambaLMForward, CastWeightsKeepsTheSensitiveOnes) {
  MambaLM model(sized(1, 16, 16));
  model->cast_weights(torch::kBFloat16);
  for (const auto& p : model->named_parameters()) {
    const std::string& name = p.key();
    const bool large = name.find("proj.weight") != std::string::npos || name.find("embedding") != std::string::npos;
    EXPECT_EQ(p.value().scalar_type(), large ? torch::kBFloat16 : torch::kFloat) << name;
  }
  const torch::NoGradGuard no_grad;
  EXPECT_TRUE(torch::isfinite(model->forward(torch::zeros({1, 5}, torch::kLong)).first).all().item<bool>());
}

TEST(MambaLMForward, EmptySequenceAndBatch) {
  const torch::NoGradGuard no_grad;
  MambaLM model(sized(2, 16, 16));
  EXPECT_EQ(model->forward(torch::zeros({2, 0}, torch::kLong)).first.sizes(), torch::IntArrayRef({2, 0, 16}));
  EXPECT_EQ(model->forward(torch::zeros({0, 3}, torch::kLong)).first.sizes(), torch::IntArrayRef({0, 3, 16}));
}

}  // namespace
}  // namespace adder::tests
