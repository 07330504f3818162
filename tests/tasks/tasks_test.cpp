#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <fstream>

#include "adder/core/error.h"
#include "adder/tasks/make_task.h"
#include "adder/tasks/step.h"

namespace adder::tests {
namespace {

using tasks::TaskBatch;
using tasks::TaskOptions;
using testing::HasSubstr;
using testing::ThrowsMessage;

TaskOptions copying(int64_t noise, int64_t tokens) {
  TaskOptions options;
  options.name = "selective_copying";
  options.selective_copying.noise = noise;
  options.selective_copying.tokens = tokens;
  return options;
}

TEST(SelectiveCopying, TargetsAreTheTokensInOrder) {
  const auto task = tasks::make_task(copying(20, 5));
  EXPECT_EQ(task->length(), 30);
  const TaskBatch batch = *task->training(50, 1)->next();
  ASSERT_EQ(batch.input.sizes(), torch::IntArrayRef({50, 30}));
  for (int64_t row = 0; row < 50; ++row) {
    std::vector<int64_t> copied;
    for (int64_t i = 0; i < 25; ++i) {
      const auto token = batch.input[row][i].item<int64_t>();
      EXPECT_EQ(batch.target[row][i].item<int64_t>(), tasks::kIgnored);
      ASSERT_TRUE(token >= 0 && token <= 14);
      if (token != 0) copied.push_back(token);
    }
    ASSERT_EQ(copied.size(), 5);
    for (int64_t i = 0; i < 5; ++i) {
      EXPECT_EQ(batch.input[row][25 + i].item<int64_t>(), 15);
      EXPECT_EQ(batch.target[row][25 + i].item<int64_t>(), copied[i]);
    }
  }
}

TEST(SelectiveCopying, PlacesAndTokensAreUniform) {
  const auto task = tasks::make_task(copying(12, 4));
  const TaskBatch batch = *task->training(8000, 2)->next();
  const torch::Tensor head = batch.input.narrow(1, 0, 16);
  const torch::Tensor share =
      (head != 0).to(torch::kFloat).mean(0);  // of each place: 4 / 16, 5 standard deviations are 0.024
  EXPECT_LT((share - 0.25).abs().max().item<double>(), 0.025);
  const torch::Tensor counts = torch::bincount(head.masked_select(head != 0)).to(torch::kFloat) / 32000;
  for (int64_t token = 1; token <= 14; ++token) EXPECT_NEAR(counts[token].item<double>(), 1.0 / 14, 0.0075);
}

TEST(SelectiveCopying, SequencesDependOnSeedAndNumberAlone) {
  const auto task = tasks::make_task(copying(20, 5));
  const auto single = task->training(1, 3), many = task->training(7, 3), other = task->training(7, 4);
  const torch::Tensor batch = many->next()->input;
  EXPECT_FALSE(torch::equal(batch, other->next()->input));
  nlohmann::json after;
  for (int64_t row = 0; row < 7; ++row) {
    const TaskBatch one = *single->next();
    EXPECT_TRUE(torch::equal(one.input[0], batch[row]));
    after = one.after;
  }
  const auto resumed = task->training(7, 3);
  resumed->seek(after);
  EXPECT_TRUE(torch::equal(resumed->next()->input, many->next()->input));
  EXPECT_THAT([&] { resumed->seek({{"sequence", -1}}); }, ThrowsMessage<Error>(HasSubstr("data position")));
}

TEST(SelectiveCopying, EvaluationEndsAndIsFixed) {
  TaskOptions options = copying(20, 5);
  options.selective_copying.evaluation_sequences = 25;
  const auto task = tasks::make_task(options);
  const auto source = task->evaluation(10, false);
  int64_t rows = 0;
  while (const auto batch = source->next()) rows += batch->input.size(0);
  EXPECT_EQ(rows, 25);
}

TEST(InductionHeads, AnswerFollowsTheFirstSpecialToken) {
  TaskOptions options;
  options.name = "induction_heads";
  options.induction_heads.length = 32;
  const TaskBatch batch = *tasks::make_task(options)->training(500, 1)->next();
  std::vector<int64_t> places;
  for (int64_t row = 0; row < 500; ++row) {
    const torch::Tensor input = batch.input[row];
    const torch::Tensor special = (input == 15).nonzero().reshape({-1});
    ASSERT_EQ(special.numel(), 2);
    const auto place = special[0].item<int64_t>();
    EXPECT_EQ(special[1].item<int64_t>(), 31);
    EXPECT_EQ(batch.target[row][31].item<int64_t>(), input[place + 1].item<int64_t>());
    EXPECT_EQ((batch.target[row] != tasks::kIgnored).sum().item<int64_t>(), 1);
    places.push_back(place);
  }
  EXPECT_EQ(*std::min_element(places.begin(), places.end()), 0);
  EXPECT_EQ(*std::max_element(places.begin(), places.end()), 29);
}

class LanguageModelTask : public testing::Test {
 protected:
  void SetUp() override {
    path_ = std::filesystem::temp_directory_path() / ("adder-tasks-" + std::to_string(::getpid()) + ".txt");
    std::ofstream out(path_);
    for (int i = 0; i < 400; ++i) out << "line " << i << (i % 7 == 0 ? "\f" : "\n");
    options_.language_model.files = {path_.string()};
    options_.language_model.length = 32;
  }
  void TearDown() override { std::filesystem::remove(path_); }

  models::MambaLM model() const {
    torch::manual_seed(0);
    models::MambaLMOptions options;
    options.d_model = 16;
    options.n_layer = 2;
    return models::MambaLM(options);
  }

  std::filesystem::path path_;
  TaskOptions options_;
};

TEST_F(LanguageModelTask, EvaluationIsTheMeanOverEachTargetOnce) {
  const auto task = tasks::make_task(options_);
  models::MambaLM lm = model();
  const tasks::Evaluation whole = tasks::evaluate(*lm, *task->evaluation(4, false));
  double sum = 0;
  int64_t count = 0;
  const torch::NoGradGuard no_grad;
  lm->eval();
  const auto source = task->evaluation(1, false);
  while (const auto batch = source->next()) {
    const torch::Tensor logits = lm->forward(batch->input).first;
    sum += torch::cross_entropy_loss(logits[0], batch->target[0], {}, at::Reduction::Sum).item<double>();
    count += batch->target.numel();
  }
  EXPECT_EQ(whole.targets, count);
  EXPECT_NEAR(whole.loss, sum / static_cast<double>(count), 1e-5);
}

TEST_F(LanguageModelTask, CarriedEvaluationIsOneLongSequence) {
  models::MambaLM lm = model();
  const tasks::Evaluation carried = tasks::evaluate(*lm, *tasks::make_task(options_)->evaluation(1, true));
  options_.language_model.evaluation_length = 100000;
  const tasks::Evaluation at_once = tasks::evaluate(*lm, *tasks::make_task(options_)->evaluation(1, false));
  EXPECT_EQ(carried.targets, at_once.targets);
  EXPECT_NEAR(carried.loss, at_once.loss, 1e-5);
}

TEST_F(LanguageModelTask, DocumentsResetTheState) {
  options_.language_model.document_separator = "\f";
  options_.language_model.reset_at_documents = true;
  models::MambaLM lm = model();
  const auto task = tasks::make_task(options_);
  const TaskBatch batch = *task->training(3, 1)->next();
  ASSERT_TRUE(batch.starts.defined());
  ASSERT_GT(batch.starts.sum().item<int64_t>(), 0);
  const torch::NoGradGuard no_grad;
  const auto packed = tasks::batch_loss(*lm, batch, {});
  // Each document of each row by itself.
  std::vector<torch::Tensor> each;
  for (int64_t row = 0; row < 3; ++row) {
    std::vector<int64_t> cuts{0};
    for (int64_t i = 1; i < 32; ++i)
      if (batch.starts[row][i].item<bool>()) cuts.push_back(i);
    cuts.push_back(32);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      const auto part = [&](const torch::Tensor& t) { return t.slice(0, row, row + 1).slice(1, cuts[i], cuts[i + 1]); };
      each.push_back(lm->loss(part(batch.input), part(batch.target)).each);
    }
  }
  EXPECT_TRUE(torch::allclose(packed.each, torch::cat(each), 1e-4, 1e-4));
  EXPECT_EQ(packed.state.layers[0].ssm.size(0), 3);
  // Going on from a state: a row without a document start sees it, one that begins with a document does not.
  const auto again = tasks::batch_loss(*lm, batch, packed.state);
  for (int64_t row = 0; row < 3; ++row) {
    const auto of_row = [&](const torch::Tensor& t) { return t.slice(0, row * 32, row * 32 + 32); };
    EXPECT_EQ(torch::allclose(of_row(again.each), of_row(packed.each), 1e-4, 1e-4), batch.starts[row][0].item<bool>())
        << row;
  }
}

TEST_F(LanguageModelTask, BadInput) {
  TaskOptions none;
  EXPECT_THAT([&] { tasks::make_task(none); }, ThrowsMessage<Error>(HasSubstr("give either files")));
  TaskOptions missing;
  missing.language_model.files = {"/nowhere/text.txt"};
  EXPECT_THAT([&] { tasks::make_task(missing); }, ThrowsMessage<Error>(HasSubstr("/nowhere/text.txt")));
  options_.language_model.validation_fraction = 0;
  EXPECT_THAT([&] { tasks::make_task(options_)->evaluation(1, false); },
              ThrowsMessage<Error>(HasSubstr("nothing is held out")));
}

}  // namespace
}  // namespace adder::tests
