#include "adder/infer/decode_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/error_of.h"
#include "tests/infer/tiny_model.h"

namespace adder::infer {
namespace {

using namespace tests;
using ::testing::HasSubstr;

// Of logits of up to about 5; products of other row counts may sum in another order.
constexpr double kClose = 1e-5;

// Lengths around the convolution's width, and more rows than a small-batch product takes.
const std::vector<int64_t> kLengths = {1, 5, 2, 3, 64, 1, 130, 4, 17, 3};

double state_distance(const DecodeState& a, const DecodeState& b) {
  double most = distance(a.logits, b.logits);
  for (size_t i = 0; i < a.lm.layers.size(); ++i) {
    most = std::max(most, distance(a.lm.layers[i].conv, b.lm.layers.at(i).conv));
    most = std::max(most, distance(a.lm.layers[i].ssm, b.lm.layers.at(i).ssm));
  }
  return most;
}

DecodeState state_after(const models::MambaLM& model, const std::vector<Tokens>& prompts, int64_t piece_tokens = 4096) {
  DecodeSession session(model, piece_tokens);
  session.prefill(prompts);
  return session.state();
}

DecodeState deep_copy(const DecodeState& state) {
  DecodeState copy{state.lm, state.logits.clone()};
  for (nn::MambaState& layer : copy.lm.layers) layer = {layer.conv.clone(), layer.ssm.clone()};
  return copy;
}

TEST(DecodeSession, PrefillAndStepsEqualTheWholeSequence) {
  auto model = tiny_model();
  const Tokens tokens = random_tokens(40, 3);
  const torch::Tensor expected = all_logits(model, tokens);
  for (const int64_t prompt : {0, 1, 2, 3, 4, 5, 39}) {
    DecodeSession session(model);
    if (prompt > 0) {
      const torch::Tensor got = session.prefill({Tokens(tokens.begin(), tokens.begin() + prompt)});
      EXPECT_LT(distance(got[0], expected[prompt - 1]), kClose);
    }
    for (int64_t i = prompt; i < 40; ++i)
      EXPECT_LT(distance(session.step({tokens[static_cast<size_t>(i)]})[0], expected[i]), kClose)
          << "prompt of " << prompt << ", token " << i;
  }
}

TEST(DecodeSession, RaggedRowsEqualEachRowAlone) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts(kLengths);
  const DecodeState all = state_after(model, prompts);
  ASSERT_EQ(all.rows(), static_cast<int64_t>(prompts.size()));
  for (size_t row = 0; row < prompts.size(); ++row) {
    const DecodeState got = all.select({static_cast<int64_t>(row)});
    EXPECT_LT(state_distance(got, state_after(model, {prompts[row]})), kClose) << row;
    EXPECT_LT(distance(got.logits[0], all_logits(model, prompts[row])[-1]), kClose) << row;
  }
}

// Every bit: else a batch could turn a draw. With prompts of several pieces, and more rows than share a pass.
void expect_bits_alone(const models::MambaLM& model) {
  const std::vector<Tokens> prompts = random_prompts(kLengths);
  const auto ends = [&](const std::vector<Tokens>& some) {
    DecodeSession session(model, 50);
    session.prefill(some);
    for (int64_t step = 0; step < 4; ++step) {
      Tokens next;
      for (const Tokens& prompt : some) next.push_back((prompt.front() + step) % model->options().vocab_size);
      session.step(next);
    }
    return session.state();
  };
  const DecodeState all = ends(prompts);
  for (size_t row = 0; row < prompts.size(); ++row)
    EXPECT_EQ(state_distance(all.select({static_cast<int64_t>(row)}), ends({prompts[row]})), 0) << row;
}

TEST(DecodeSession, ARowsBitsDoNotDependOnItsBatch) {
  expect_bits_alone(tiny_model());
  auto narrow = tiny_model();
  narrow->cast_weights(torch::kBFloat16);
  expect_bits_alone(narrow);
  auto frozen = tiny_model();
  for (torch::Tensor& parameter : frozen->parameters()) parameter.set_requires_grad(false);
  expect_bits_alone(frozen);
  frozen->set_activation_type(torch::kBFloat16);  // each matrix is cast on use
  expect_bits_alone(frozen);
  for (const bool changed : {false, true}) {
    models::MambaLMOptions options;
    options.d_model = changed ? 33 : 200;
    options.n_layer = 2;
    options.vocab_size = 500;
    options.mixer.bias = options.mixer.complex = changed;
    options.mixer.inner_norm = changed ? "rms" : "none";
    torch::manual_seed(5);
    expect_bits_alone(models::MambaLM(options));
  }
}

TEST(DecodeSession, PiecesOfAnySizeGiveTheSame) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts(kLengths);
  const DecodeState whole = state_after(model, prompts);
  for (const int64_t piece : {1, 2, 3, 4, 6, 7, 64, 65, 229, 230, 231})
    EXPECT_LT(state_distance(state_after(model, prompts, piece), whole), kClose) << piece;
}

TEST(DecodeSession, ContinuesEachRowWithNoneOneOrMoreTokens) {
  auto model = tiny_model();
  // Row 5 has seen one token more than the convolution's window holds.
  const std::vector<Tokens> before = random_prompts({3, 1, 20, 2, 9, 4});
  const std::vector<Tokens> more = {{}, {5}, {}, random_tokens(70, 9), {}, random_tokens(6, 10)};
  std::vector<Tokens> whole;
  for (size_t row = 0; row < before.size(); ++row) whole.push_back(joined(before[row], more[row]));
  const DecodeState expected = state_after(model, whole);
  const DecodeState saved = state_after(model, before);
  const DecodeState original = deep_copy(saved);
  for (const int64_t piece : {1, 2, 64, 4096}) {
    DecodeSession session(model, piece);
    session.set_state(saved);
    session.prefill(more);
    EXPECT_LT(state_distance(session.state(), expected), kClose) << piece;
    // Rows that got nothing are bit-equal.
    EXPECT_EQ(state_distance(session.state().select({0, 2, 4}), saved.select({0, 2, 4})), 0) << piece;
    session.step({1, 2, 3, 4, 5, 6});
    EXPECT_EQ(state_distance(saved, original), 0) << "the saved state was written to, piece " << piece;
  }
  DecodeSession session(model);
  session.set_state(saved);
  session.prefill(std::vector<Tokens>(6));
  EXPECT_EQ(state_distance(session.state(), saved), 0);
}

TEST(DecodeSession, SelectDropsReordersAndForks) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts({4, 7, 2});
  DecodeSession session(model);
  session.prefill(prompts);
  session.select({2, 0, 2});
  session.step({8, 9, 10});
  EXPECT_LT(state_distance(session.state(), state_after(model, {joined(prompts[2], {8}), joined(prompts[0], {9}),
                                                                joined(prompts[2], {10})})),
            kClose);
  session.select({});
  EXPECT_EQ(session.rows(), 0);
  EXPECT_EQ(state_distance((session.prefill({prompts[1]}), session.state()), state_after(model, {prompts[1]})), 0);
}

TEST(DecodeSession, NoRows) {
  DecodeSession session(tiny_model());
  EXPECT_EQ(session.prefill({}).sizes(), (std::vector<int64_t>{0, kVocab}));
  EXPECT_EQ(session.step({}).sizes(), (std::vector<int64_t>{0, kVocab}));
  EXPECT_EQ(session.rows(), 0);
}

TEST(DecodeSession, DropoutIsOffAndTheModelStaysInTraining) {
  auto model = tiny_model(0.5);
  model->train();
  const std::vector<Tokens> prompts = random_prompts({9, 3});
  EXPECT_EQ(state_distance(state_after(model, prompts), state_after(tiny_model(), prompts)), 0);
  EXPECT_TRUE(model->is_training());
  model->eval();
  const DecodeState state = state_after(model, prompts);
  EXPECT_FALSE(model->is_training());
  EXPECT_FALSE(state.logits.requires_grad());
  // Training goes on with the same parameters.
  model->forward(torch::zeros({1, 4}, torch::kLong)).first.sum().backward();
  EXPECT_TRUE(model->parameters().front().grad().defined());
}

TEST(DecodeSession, LogitsAreFloat32ForNarrowActivations) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts({9, 3});
  const torch::Tensor wide = state_after(model, prompts).logits;
  model->cast_weights(torch::kBFloat16);
  DecodeSession session(model);
  EXPECT_EQ(session.prefill(prompts).scalar_type(), torch::kFloat);
  EXPECT_LT(distance(session.state().logits, wide), 0.1);
  EXPECT_EQ(session.step({1, 2}).scalar_type(), torch::kFloat);
}

TEST(DecodeSession, Errors) {
  auto model = tiny_model();
  EXPECT_THAT(error_of([&] { DecodeSession(model, -1); }), HasSubstr("piece_tokens must be at least 1, or 0"));
  DecodeSession session(model);
  EXPECT_THAT(error_of([&] { session.prefill({{1}, {2, 3, 37}}); }),
              HasSubstr("token 37 at position 2 of row 1 is outside the vocabulary [0, 37)"));
  EXPECT_THAT(error_of([&] { session.prefill({{-1}}); }), HasSubstr("token -1 at position 0 of row 0"));
  EXPECT_THAT(error_of([&] { session.prefill({{1}, {}}); }), HasSubstr("the prompt of row 1 is empty"));
  EXPECT_EQ(session.rows(), 0);
  session.prefill({{1}, {2}});
  const DecodeState state = session.state();
  EXPECT_THAT(error_of([&] { session.prefill({{1}}); }), HasSubstr("2 rows needs as many prompts, got 1"));
  EXPECT_THAT(error_of([&] { session.step({1, 2, 3}); }), HasSubstr("2 rows needs as many tokens, got 3"));
  EXPECT_THAT(error_of([&] { session.step({1, 40}); }), HasSubstr("token 40 at position 0 of row 1"));
  EXPECT_THAT(error_of([&] { session.select({0, 2}); }), HasSubstr("row 2 is not one of the 2 rows"));
  EXPECT_EQ(state_distance(session.state(), state), 0);

  DecodeState wrong = state;
  wrong.lm.layers.pop_back();
  EXPECT_THAT(error_of([&] { session.set_state(wrong); }), HasSubstr("2 layers does not fit a model of 3"));
  wrong = state;
  wrong.lm.layers[1] = state.select({0}).lm.layers[1];
  EXPECT_THAT(error_of([&] { session.set_state(wrong); }),
              HasSubstr("layer 1 must have a state for each of the 2 rows"));
  wrong = state;
  wrong.logits = torch::zeros({2, 5});
  EXPECT_THAT(error_of([&] { session.set_state(wrong); }), HasSubstr("(S, V) with V = 37, got (2, 5)"));
}

}  // namespace
}  // namespace adder::infer
