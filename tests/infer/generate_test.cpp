#include "adder/infer/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "adder/core/options_io.h"
#include "tests/error_of.h"
#include "tests/infer/tiny_model.h"

namespace adder::infer {
namespace {

using namespace tests;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::vector<int64_t> kLengths = {1, 5, 2, 3, 64, 1, 30, 4, 17, 3};

GenerateOptions greedy(int64_t max_tokens) {
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = max_tokens;
  return options;
}

GenerateOptions sampled(int64_t max_tokens) {
  GenerateOptions options;
  options.sampling = {.temperature = 1.5, .top_k = 30, .top_p = 0.98, .repetition_penalty = 1.1, .seed = 5};
  options.sampling.max_tokens = max_tokens;
  return options;
}

std::vector<Tokens> tokens_of(const Generation& generation) {
  std::vector<Tokens> tokens;
  for (const GeneratedRow& row : generation.rows) tokens.push_back(row.tokens);
  return tokens;
}

TEST(Generate, EqualsRecomputationOfTheWholeSequence) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts({1, 6, 3});
  for (const GenerateOptions& options : {greedy(25), sampled(25)}) {
    const Generation got = generate(model, prompts, options);
    for (size_t row = 0; row < prompts.size(); ++row) {
      Tokens tokens = prompts[row];
      for (int64_t step = 0; step < 25; ++step) {
        const torch::Tensor logits = all_logits(model, tokens)[-1].contiguous();
        tokens.push_back(sample_token({logits.data_ptr<float>(), static_cast<size_t>(kVocab)}, options.sampling,
                                      static_cast<int64_t>(row), step, tokens));
      }
      EXPECT_EQ(joined(prompts[row], got.rows[row].tokens), tokens) << row;
      EXPECT_EQ(got.rows[row].finish, FinishReason::kMaxTokens);
    }
  }
}

TEST(Generate, TheTestModelSaysManyThings) {
  const Generation got = generate(tiny_model(), random_prompts(kLengths), greedy(30));
  std::set<int64_t> seen;
  for (const Tokens& tokens : tokens_of(got)) seen.insert(tokens.begin(), tokens.end());
  EXPECT_GT(seen.size(), 10u);
}

TEST(Generate, ARowGivesTheSameAloneAndInABatch) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts(kLengths);
  for (GenerateOptions options : {greedy(40), sampled(40)}) {
    const std::vector<Tokens> all = tokens_of(generate(model, prompts, options));
    for (size_t row = 0; row < prompts.size(); ++row) {
      options.row_numbers = {static_cast<int64_t>(row)};
      EXPECT_THAT(tokens_of(generate(model, {prompts[row]}, options)), ElementsAre(all[row])) << row;
    }
    options.row_numbers = {};
    for (const int64_t piece : {1, 3, 50}) {
      options.piece_tokens = piece;
      EXPECT_EQ(tokens_of(generate(model, prompts, options)), all) << piece;
    }
  }
}

TEST(Generate, EqualPromptsGiveDifferentRowsUnlessGreedy) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts(3, Tokens{4, 5});
  const std::vector<Tokens> rows = tokens_of(generate(model, prompts, sampled(20)));
  EXPECT_NE(rows[0], rows[1]);
  EXPECT_NE(rows[1], rows[2]);
  const std::vector<Tokens> equal = tokens_of(generate(model, prompts, greedy(20)));
  EXPECT_EQ(equal[0], equal[1]);
  GenerateOptions options = sampled(20);
  options.row_numbers = {2, 2, 0};
  EXPECT_EQ(tokens_of(generate(model, prompts, options)), (std::vector<Tokens>{rows[2], rows[2], rows[0]}));
}

TEST(Generate, RowsThatEndAtDifferentStepsDoNotChangeTheOthers) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts(kLengths);
  for (GenerateOptions options : {greedy(40), sampled(40)}) {
    const std::vector<Tokens> full = tokens_of(generate(model, prompts, options));
    options.sampling.stop_tokens = {full[0][0], full[1][7], full[3][12]};
    const Generation got = generate(model, prompts, options);
    std::set<size_t> lengths;
    int64_t steps = 0;
    for (size_t row = 0; row < prompts.size(); ++row) {
      const Tokens& stops = options.sampling.stop_tokens;
      const auto stop = std::find_first_of(full[row].begin(), full[row].end(), stops.begin(), stops.end());
      EXPECT_EQ(got.rows[row].tokens, Tokens(full[row].begin(), stop)) << row;
      EXPECT_EQ(got.rows[row].finish, stop == full[row].end() ? FinishReason::kMaxTokens : FinishReason::kStopToken);
      lengths.insert(got.rows[row].tokens.size());
      steps += std::min<int64_t>(39, stop - full[row].begin());
    }
    EXPECT_GT(lengths.size(), 3u);
    EXPECT_EQ(got.decode_tokens, steps);
  }
}

TEST(Generate, TheCallbackStreamsAndStopsARowOrAll) {
  auto model = tiny_model();
  const std::vector<Tokens> prompts = random_prompts({3, 1, 8});
  const std::vector<Tokens> full = tokens_of(generate(model, prompts, greedy(10)));
  std::vector<std::pair<int64_t, int64_t>> stream, expected;
  std::vector<int64_t> counts(3, 0);
  const Generation got = generate(model, prompts, greedy(10), [&](int64_t row, int64_t token) {
    stream.emplace_back(row, token);
    const int64_t count = ++counts[static_cast<size_t>(row)];
    if (row == 0 && count == 2) return Proceed::kStopRow;
    return row == 1 && count == 5 ? Proceed::kStopAll : Proceed::kContinue;
  });
  for (size_t step = 0; step < 5; ++step)
    for (size_t row = 0; row < 3; ++row)
      if (!(row == 0 && step >= 2) && !(row == 2 && step == 4)) expected.emplace_back(row, full[row][step]);
  EXPECT_EQ(stream, expected);
  for (const GeneratedRow& row : got.rows) EXPECT_EQ(row.finish, FinishReason::kCallback);
  EXPECT_EQ(got.rows[0].tokens.size(), 2u);
  EXPECT_EQ(got.rows[1].tokens.size(), 5u);
  EXPECT_EQ(got.rows[2].tokens.size(), 4u);
}

TEST(Generate, EmptyPromptIsTheStartToken) {
  auto model = tiny_model();
  GenerateOptions options = greedy(12);
  options.start_token = 11;
  const Generation got = generate(model, {{}, {3, 4}, {}}, options);
  EXPECT_EQ(tokens_of(got), tokens_of(generate(model, {{11}, {3, 4}, {11}}, options)));
  EXPECT_EQ(got.prompt_tokens, 4);
}

TEST(Generate, NothingToDo) {
  auto model = tiny_model();
  EXPECT_THAT(generate(model, {}, greedy(5)).rows, IsEmpty());
  const Generation none = generate(model, {{1}, {2, 3}}, greedy(0));
  EXPECT_EQ(tokens_of(none), std::vector<Tokens>(2));
  EXPECT_EQ(none.decode_tokens, 0);
  EXPECT_EQ(none.prompt_tokens, 3);
}

TEST(Generate, ForksAPromptThatWasReadOnce) {
  auto model = tiny_model();
  const Tokens prompt = random_tokens(20, 4);
  DecodeSession session(model);
  session.prefill({prompt});
  const DecodeState saved = session.state();
  session.select({0, 0, 0});
  const Generation forked = generate(session, std::vector<Tokens>(3), greedy(15));
  EXPECT_EQ(forked.prompt_tokens, 0);
  EXPECT_EQ(session.rows(), 0);
  const std::vector<Tokens> expected = tokens_of(generate(model, {prompt}, greedy(15)));
  for (const Tokens& tokens : tokens_of(forked)) EXPECT_EQ(tokens, expected[0]);

  session.set_state(saved.select({0, 0}));
  const Generation more = generate(session, {{9}, {10, 11, 12}}, greedy(15));
  EXPECT_EQ(tokens_of(more),
            tokens_of(generate(model, {joined(prompt, {9}), joined(prompt, {10, 11, 12})}, greedy(15))));
}

TEST(Generate, SecondsAndTokensOfEachPhase) {
  const Generation got = generate(tiny_model(), {{1, 2, 3}, {4}}, greedy(5));
  EXPECT_EQ(got.prompt_tokens, 4);
  EXPECT_EQ(got.decode_tokens, 8);  // the prompts give the first token of each row
  EXPECT_GT(got.prompt_seconds, 0);
  EXPECT_GT(got.decode_seconds, 0);
}

TEST(Generate, ErrorsComeBeforeAnyToken) {
  auto model = tiny_model();
  const auto error = [&](const std::vector<Tokens>& prompts, const GenerateOptions& options) {
    return error_of([&] {
      generate(model, prompts, options, [](int64_t, int64_t) {
        ADD_FAILURE() << "a token came";
        return Proceed::kStopAll;
      });
    });
  };
  EXPECT_THAT(error({{1}, {2, 37}}, greedy(3)), HasSubstr("token 37 at position 1 of row 1 is outside the vocabulary"));
  EXPECT_THAT(error({{1}, {}}, greedy(3)), HasSubstr("the prompt of row 1 is empty, and there is no start_token"));
  GenerateOptions options = greedy(3);
  options.start_token = 37;
  EXPECT_THAT(error({{1}}, options),
              HasSubstr("start_token must be in the vocabulary [0, 37), or -1 for none, got 37"));
  options = greedy(3);
  options.sampling.stop_tokens = {1, 50};
  EXPECT_THAT(error({{1}}, options), HasSubstr("stop token 50 is outside the vocabulary [0, 37)"));
  options = greedy(3);
  options.row_numbers = {1, 2};
  EXPECT_THAT(error({{1}}, options), HasSubstr("2 row numbers for 1 prompts"));
  options = greedy(-1);
  EXPECT_THAT(error({{1}}, options), HasSubstr("max_tokens must be"));
}

TEST(Generate, NaNLogitsNameTheRow) {
  auto model = tiny_model();
  {
    const torch::NoGradGuard no_grad;
    model->named_parameters()["backbone.embedding.weight"][5].fill_(std::numeric_limits<float>::quiet_NaN());
  }
  EXPECT_THAT(error_of([&] { generate(model, {{1}, {5}}, greedy(3)); }), HasSubstr("generate: row 1 after 0 tokens: "));
}

TEST(GenerateOptions, OneTable) {
  GenerateOptions options;
  core::read_toml_text(options, "top_k = 3\nstart_token = 0\npiece_tokens = 7\nstop_tokens = [\"2\"]", "text");
  EXPECT_EQ(options.sampling.top_k, 3);
  EXPECT_EQ(options.start_token, 0);
  EXPECT_EQ(options.piece_tokens, 7);
  EXPECT_THAT(options.sampling.stop_tokens, ElementsAre(2));
}

}  // namespace
}  // namespace adder::infer
