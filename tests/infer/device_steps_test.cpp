// What decoding does on a GPU beside what it does on the CPU.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "adder/infer/decode_kernels.h"
#include "adder/infer/decode_session.h"
#include "adder/infer/generate.h"
#include "tests/device.h"
#include "tests/error_of.h"
#include "tests/infer/tiny_model.h"

namespace adder::infer {
namespace {

using namespace tests;
using adder::tests::cuda_is_required;
using adder::tests::cuda_is_there;

struct Shape {
  std::string name;
  int64_t d_model = 64, rows = 1, d_state = 16, d_conv = 4, expand = 2;
  std::string dt_rank = "8";
  bool conv_bias = true, tie = false;
  int64_t vocab = 61;
};

std::vector<Shape> shapes() {
  std::vector<Shape> list = {{.name = "base"},
                             {.name = "tied", .tie = true},
                             {.name = "two_rows", .rows = 2},
                             {.name = "three_rows", .rows = 3},
                             {.name = "eight_rows", .rows = 8},
                             {.name = "states_8", .d_state = 8},
                             {.name = "states_32", .rows = 5, .d_state = 32},
                             {.name = "states_64", .d_state = 64},
                             {.name = "width_2", .rows = 4, .d_conv = 2},
                             {.name = "width_1", .d_conv = 1},
                             {.name = "no_conv_bias", .conv_bias = false},
                             {.name = "expand_1", .expand = 1},
                             {.name = "expand_4", .expand = 4}};
  // Rows longer than a piece of the ring, tiles that are not full, more channels than a tile, a ring that wraps around.
  list.push_back({.name = "wide", .d_model = 1184, .dt_rank = "80", .vocab = 3000});
  list.push_back({.name = "wide_rows", .d_model = 1184, .rows = 6, .dt_rank = "80", .vocab = 3000});
  // More rows than the one kernel takes.
  list.push_back({.name = "nine_rows", .rows = 9});
  list.push_back({.name = "many_rows", .d_model = 96, .rows = 33, .d_conv = 3, .conv_bias = false, .tie = true});
  list.push_back({.name = "many_rows_states_8", .rows = 17, .d_state = 8, .dt_rank = "5"});
  list.push_back({.name = "wider", .d_model = 2560, .dt_rank = "128", .vocab = 500});
  return list;
}

models::MambaLM model_of(const Shape& shape) {
  torch::manual_seed(3);
  models::MambaLMOptions options;
  options.d_model = shape.d_model;
  options.n_layer = 3;
  options.vocab_size = shape.vocab;
  options.tie_embeddings = shape.tie;
  options.mixer.d_state = shape.d_state;
  options.mixer.d_conv = shape.d_conv;
  options.mixer.expand = shape.expand;
  options.mixer.dt_rank = shape.dt_rank;
  options.mixer.conv_bias = shape.conv_bias;
  models::MambaLM model(options);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->named_parameters()) {  // norms of other weights than 1, embeddings of some size
    if (parameter.key().find("norm") != std::string::npos) parameter.value().uniform_(0.5, 1.5);
    if (parameter.key().find("embedding") != std::string::npos) parameter.value().mul_(20);
  }
  model->eval();
  return model;
}

class FusedStep : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override { ADDER_NEEDS_CUDA(); }

  // Logits of some single steps after prompts of different lengths, and the state behind them.
  static std::vector<torch::Tensor> run(const models::MambaLM& model, int64_t rows) {
    DecodeSession session(model);
    std::vector<Tokens> prompts;
    for (int64_t row = 0; row < rows; ++row) prompts.push_back(Tokens(static_cast<size_t>(1 + row), 7 + row));
    session.prefill(prompts);
    std::vector<torch::Tensor> results;
    for (int64_t step = 0; step < 4; ++step) {
      Tokens tokens;
      for (int64_t row = 0; row < rows; ++row) tokens.push_back((11 * step + 5 * row) % model->options().vocab_size);
      results.push_back(session.step(tokens).to(torch::kCPU, torch::kFloat, false, true));
    }
    for (const nn::MambaState& layer : session.state().lm.layers) {
      results.push_back(layer.conv.cpu());
      results.push_back(layer.ssm.cpu());
    }
    return results;
  }

  static bool is_fused(models::MambaLM model, int64_t rows) {
    const c10::InferenceMode inference;
    const torch::TensorOptions options(model->device());
    StepTensors tensors{torch::zeros({rows}, options.dtype(torch::kLong)),
                        torch::empty({rows, model->options().vocab_size}, options),
                        {}};
    for (const nn::MambaState& layer : model->hidden(tensors.tokens.unsqueeze(1), {}, {}).second.layers)
      tensors.state.layers.push_back({layer.conv.contiguous(), layer.ssm.contiguous()});
    return (rows <= 8 ? one_kernel_step(model, tensors) : many_rows_step(model, tensors)) != nullptr;
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, FusedStep, testing::ValuesIn(shapes()),
                         [](const auto& test) { return test.param.name; });

double relative(const torch::Tensor& got, const torch::Tensor& expected) {
  if (expected.numel() == 0) return distance(got, expected);
  return distance(got, expected) / std::max(1e-6, expected.abs().max().item<double>());
}

TEST_P(FusedStep, EqualsTheLayersOnTheCpu) {
  models::MambaLM model = model_of(GetParam());
  const std::vector<torch::Tensor> expected = run(model, GetParam().rows);
  model->to(torch::kCUDA);
  ASSERT_TRUE(is_fused(model, GetParam().rows));
  const std::vector<torch::Tensor> got = run(model, GetParam().rows);
  for (size_t i = 0; i < got.size(); ++i) EXPECT_LT(relative(got[i], expected[i]), 2e-5) << i;
}

// Rounded to bfloat16 where the layers round, and in fewer places.
TEST_P(FusedStep, Bfloat16IsAsNearAsTheLayersAre) {
  models::MambaLM model = model_of(GetParam());
  const std::vector<torch::Tensor> exact = run(model, GetParam().rows);
  model->cast_weights(torch::kBFloat16);
  const std::vector<torch::Tensor> layers = run(model, GetParam().rows);
  model->to(torch::kCUDA);
  ASSERT_TRUE(is_fused(model, GetParam().rows));
  const std::vector<torch::Tensor> got = run(model, GetParam().rows);
  for (size_t i = 0; i < got.size(); ++i)
    EXPECT_LT(relative(got[i], exact[i]), 2 * relative(layers[i], exact[i]) + 1e-3) << i;
}

TEST_P(FusedStep, TheSameBitsTwice) {
  models::MambaLM model = model_of(GetParam());
  model->cast_weights(torch::kBFloat16);
  model->to(torch::kCUDA);
  const std::vector<torch::Tensor> first = run(model, GetParam().rows), second = run(model, GetParam().rows);
  for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(torch::equal(first[i], second[i])) << i;
}

TEST(RecordedStep, ShapesThatTheKernelIsNotMadeFor) {
  ADDER_NEEDS_CUDA();
  Shape odd{.name = "odd", .d_model = 37, .rows = 2};
  Shape states{.name = "states", .rows = 9, .d_state = 5};
  for (const Shape& shape : {odd, states}) {
    models::MambaLM model = model_of(shape);
    DecodeSession cpu(model);
    const std::vector<Tokens> prompts(static_cast<size_t>(shape.rows), Tokens{1, 2, 3});
    cpu.prefill(prompts);
    const Tokens next(static_cast<size_t>(shape.rows), 5);
    const torch::Tensor expected = cpu.step(next);
    model->to(torch::kCUDA);
    DecodeSession gpu(model);
    gpu.prefill(prompts);
    EXPECT_LT(relative(gpu.step(next).cpu(), expected), 2e-5) << shape.name;
  }
}

// A state that was taken stays what it was, and steps go on from one that is set.
TEST(RecordedStep, TheStateIsAValue) {
  ADDER_NEEDS_CUDA();
  models::MambaLM model = model_of({.name = "base"});
  model->to(torch::kCUDA);
  DecodeSession session(model);
  session.prefill({{1, 2}, {3}});
  session.step({4, 5});
  const DecodeState kept = session.state();
  const torch::Tensor after = session.step({6, 7}).clone();
  session.step({8, 9});
  session.set_state(kept);
  EXPECT_TRUE(torch::equal(session.step({6, 7}), after));
  session.set_state(kept.select({1}));
  EXPECT_TRUE(torch::equal(session.step({7})[0], after[1]));
  session.set_state({});
  session.step({2});
  DecodeSession fresh(model);
  EXPECT_LT(distance(fresh.prefill({{2}}), session.state().logits), 1e-4);
}

struct Choice {
  std::string name;
  SamplingOptions options;
};

class DeviceSampling : public testing::TestWithParam<Choice> {
 protected:
  void SetUp() override { ADDER_NEEDS_CUDA(); }
};
INSTANTIATE_TEST_SUITE_P(
    Choices, DeviceSampling,
    testing::Values(Choice{"greedy", {.temperature = 0}}, Choice{"plain", {}}, Choice{"hot", {.temperature = 3}},
                    Choice{"top_k", {.top_k = 7}}, Choice{"top_k_1", {.top_k = 1}}, Choice{"top_p", {.top_p = 0.7}},
                    Choice{"top_p_0", {.top_p = 0}}, Choice{"min_p", {.min_p = 0.2}},
                    Choice{"penalty", {.temperature = 0, .repetition_penalty = 1.8}},
                    Choice{"all",
                           {.temperature = 1.3, .top_k = 40, .top_p = 0.9, .min_p = 0.01, .repetition_penalty = 1.2}}),
    [](const auto& test) { return test.param.name; });

TEST_P(DeviceSampling, ChoosesAsTheCpuDoes) {
  constexpr int64_t kRows = 400;
  for (const int64_t vocab : {3, 1000, 50280}) {
    torch::manual_seed(vocab);
    // Halves, so that there are many equal logits.
    torch::Tensor logits = (torch::randn({kRows, vocab}) * 4).round() / 2;
    logits.masked_fill_(torch::rand({kRows, vocab}) < 0.1, -std::numeric_limits<float>::infinity());
    logits.select(1, vocab / 2).fill_(0.5f);
    torch::Tensor places = torch::empty({kRows}, torch::kDouble);
    torch::Tensor seen = torch::zeros({kRows, vocab}, torch::kByte);
    std::vector<Tokens> histories;
    const uint64_t seed = core::derive_seed(static_cast<uint64_t>(GetParam().options.seed), "infer.sample");
    for (int64_t row = 0; row < kRows; ++row) {
      places[row] = core::random_unit(seed, static_cast<uint64_t>(row), 5);
      histories.push_back({row % vocab, logits[row].argmax().item<int64_t>()});
      for (const int64_t token : histories.back()) seen[row][token] = 1;
    }
    const torch::Tensor on_device = seen.cuda(), tokens = torch::zeros({kRows}, torch::kLong).cuda();
    sample_on_device(logits.cuda(), places.cuda(), on_device, GetParam().options, tokens);
    const torch::Tensor got = tokens.cpu();
    int64_t different = 0;
    for (int64_t row = 0; row < kRows; ++row) {
      const std::span<const float> values(logits[row].const_data_ptr<float>(), static_cast<size_t>(vocab));
      const Tokens& history = histories[static_cast<size_t>(row)];
      const int64_t expected = sample_token(values, GetParam().options, row, 5, history);
      different += got[row].item<int64_t>() != expected;
      const std::vector<Candidate> all = candidates(values, GetParam().options, history);
      const bool among =
          std::any_of(all.begin(), all.end(), [&](const Candidate& c) { return c.token == got[row].item<int64_t>(); });
      EXPECT_TRUE(among) << "vocab " << vocab << ", row " << row;
    }
    EXPECT_LE(different, 1) << "vocab " << vocab;  // sums of another precision may meet a place at a token's end
    EXPECT_TRUE(GetParam().options.repetition_penalty == 1 ||
                torch::equal(on_device.gather(1, tokens.unsqueeze(1)).cpu(), torch::ones({kRows, 1}, torch::kByte)));
  }
}

TEST(DeviceSampling, LogitsThatNothingCanBeChosenFrom) {
  ADDER_NEEDS_CUDA();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  torch::Tensor logits = torch::zeros({4, 600});
  logits[0][599] = std::nanf("");
  logits[1].fill_(-kInfinity);
  logits[2][3] = kInfinity;
  for (const double temperature : {0.0, 1.0}) {
    const torch::Tensor tokens = torch::zeros({4}, torch::kLong).cuda();
    sample_on_device(logits.cuda(), torch::zeros({4}, torch::kDouble).cuda(), {}, {.temperature = temperature}, tokens);
    EXPECT_TRUE(torch::equal(tokens.cpu(), torch::tensor({-1, -2, -1, 0}))) << tokens.cpu();
  }
}

// Rows that end at different steps, and a batch that shrinks on the way.
TEST(DeviceGenerate, EqualsTheCpu) {
  ADDER_NEEDS_CUDA();
  models::MambaLM model = tiny_model();
  std::vector<Tokens> prompts;
  for (int64_t row = 0; row < 12; ++row) prompts.push_back(random_tokens(1 + row * 3, static_cast<uint64_t>(row)));
  for (const double temperature : {0.0, 1.0}) {
    GenerateOptions options;
    options.sampling.max_tokens = 60;
    options.sampling.temperature = temperature;
    options.sampling.repetition_penalty = 1.1;
    options.sampling.stop_tokens = {3, 17};
    model->to(torch::kCPU);
    std::vector<std::pair<int64_t, int64_t>> expected_calls, calls;
    const Generation expected = generate(model, prompts, options, [&](int64_t row, int64_t token) {
      expected_calls.emplace_back(row, token);
      return row == 2 && expected_calls.size() > 30 ? Proceed::kStopRow : Proceed::kContinue;
    });
    model->to(torch::kCUDA);
    const Generation got = generate(model, prompts, options, [&](int64_t row, int64_t token) {
      calls.emplace_back(row, token);
      return row == 2 && calls.size() > 30 ? Proceed::kStopRow : Proceed::kContinue;
    });
    EXPECT_EQ(calls, expected_calls);
    EXPECT_EQ(got.decode_tokens, expected.decode_tokens);
    for (size_t row = 0; row < prompts.size(); ++row) {
      EXPECT_EQ(got.rows[row].tokens, expected.rows[row].tokens) << row;
      EXPECT_EQ(got.rows[row].finish, expected.rows[row].finish) << row;
    }
  }
}

// The choice within the one kernel, and behind the steps of many rows; rows that end early, batches that shrink.
TEST(DeviceGenerate, GreedyEqualsTheCpu) {
  ADDER_NEEDS_CUDA();
  for (const int64_t rows : {1, 3, 8, 20}) {
    for (const int64_t width : {64, 256}) {  // with fewer tokens than blocks, and more
      models::MambaLM model = model_of({.name = "greedy", .d_model = width, .vocab = width == 64 ? 61 : 5000});
      std::vector<Tokens> prompts;
      for (int64_t row = 0; row < rows; ++row)
        prompts.push_back(random_tokens(1 + row % 5, static_cast<uint64_t>(row)));
      GenerateOptions options;
      options.sampling.temperature = 0;
      options.sampling.max_tokens = 70;
      options.sampling.stop_tokens = {2, 9, 30, 31, 32};
      const Generation expected = generate(model, prompts, options);
      model->to(torch::kCUDA);
      const Generation got = generate(model, prompts, options);
      for (size_t row = 0; row < prompts.size(); ++row)
        EXPECT_EQ(got.rows[row].tokens, expected.rows[row].tokens) << rows << " rows, row " << row;
    }
  }
}

TEST(DeviceGenerate, DropoutIsOff) {
  ADDER_NEEDS_CUDA();
  models::MambaLM model = tiny_model(0.5);
  model->train();
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = 20;
  const Generation expected = generate(model, {{1, 2, 3}}, options);
  model->to(torch::kCUDA);
  EXPECT_EQ(generate(model, {{1, 2, 3}}, options).rows[0].tokens, expected.rows[0].tokens);
  EXPECT_TRUE(model->is_training());
}

// A prompt of one token, after which the model says a token at a step from 3 on that has not been there before.
struct NewToken {
  int64_t prompt = -1;
  Tokens said;
  size_t step = 0;
};

GenerateOptions greedy_options() {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = 12;
  return options;
}

NewToken find_new_token(const models::MambaLM& model) {
  for (int64_t prompt = 0; prompt < model->options().vocab_size; ++prompt) {
    const Tokens said = generate(model, {{prompt}}, greedy_options()).rows[0].tokens;
    for (size_t step = 3; step + 1 < said.size(); ++step) {
      const auto end = said.begin() + static_cast<std::ptrdiff_t>(step);
      if (said[step] != prompt && std::find(said.begin(), end, said[step]) == end) return {prompt, said, step};
    }
  }
  return {};
}

// Needs no GPU: else the test behind it could not be run.
TEST(DeviceGenerate, TheTestModelSaysSomethingNewOnTheWay) {
  EXPECT_GE(find_new_token(model_of({.name = "base"})).prompt, 0);
}

// That token makes logits NaN once it is fed.
TEST(DeviceGenerate, NaNLogitsOnTheWayNameTheRowAndTheStep) {
  ADDER_NEEDS_CUDA();
  models::MambaLM model = model_of({.name = "base"});
  const NewToken found = find_new_token(model);
  ASSERT_GE(found.prompt, 0);
  {
    const torch::NoGradGuard no_grad;
    model->named_parameters()["backbone.embedding.weight"][found.said[found.step]].fill_(
        std::numeric_limits<float>::quiet_NaN());
  }
  model->to(torch::kCUDA);
  EXPECT_THAT(error_of([&] { generate(model, {{found.prompt}}, greedy_options()); }),
              testing::HasSubstr(fmt::format("generate: row 0 after {} tokens: ", found.step + 1)));
}

TEST(DeviceGenerate, NaNLogitsNameTheRow) {
  ADDER_NEEDS_CUDA();
  models::MambaLM model = model_of({.name = "base"});
  {
    const torch::NoGradGuard no_grad;
    model->named_parameters()["backbone.embedding.weight"][5].fill_(std::numeric_limits<float>::quiet_NaN());
  }
  model->to(torch::kCUDA);
  GenerateOptions options;
  options.sampling.temperature = 0;
  EXPECT_THAT(error_of([&] { generate(model, {{1}, {5}}, options); }),
              testing::HasSubstr("generate: row 1 after 0 tokens: "));
}

}  // namespace
}  // namespace adder::infer
