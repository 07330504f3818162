#include "adder/data/sampler.h"

#include <algorithm>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "adder/core/check.h"
#include "adder/data/prefetcher.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Numbers = std::vector<int64_t>;

// Token i is i, so that a batch tells where its windows lie.
class Counting : public TokenStream {
 public:
  explicit Counting(int64_t size, Numbers documents = {0}) : size_(size), documents_(std::move(documents)) {}
  int64_t size() const override { return size_; }
  int64_t vocab_size() const override { return size_; }
  void copy(int64_t begin, int64_t count, int64_t* out) const override {
    ADDER_CHECK(begin >= 0 && begin + count <= size_, "outside");
    std::iota(out, out + count, begin);
  }
  std::span<const int64_t> documents() const override { return documents_; }

 private:
  int64_t size_;
  Numbers documents_;
};

std::shared_ptr<const TokenStream> counting(int64_t size, Numbers documents = {0}) {
  return std::make_shared<Counting>(size, std::move(documents));
}

Numbers first_column(const Batch& batch) {
  const auto column = batch.input.select(1, 0).contiguous();
  return {column.data_ptr<int64_t>(), column.data_ptr<int64_t>() + column.numel()};
}

void expect_windows(const Batch& batch, int64_t rows, int64_t length) {
  ASSERT_EQ(batch.input.sizes(), (std::vector<int64_t>{rows, length}));
  ASSERT_EQ(batch.input.scalar_type(), torch::kInt64);
  EXPECT_TRUE(torch::equal(batch.target, batch.input + 1));
  EXPECT_TRUE(torch::equal(batch.input, batch.input.select(1, 0).unsqueeze(1) + torch::arange(length)));
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_TRUE(torch::equal(a.input, b.input));
  EXPECT_TRUE(torch::equal(a.target, b.target));
  EXPECT_EQ(a.starts.defined(), b.starts.defined());
  if (a.starts.defined()) {
    EXPECT_TRUE(torch::equal(a.starts, b.starts));
  }
  EXPECT_EQ(a.fresh, b.fresh);
  EXPECT_EQ(a.after, b.after);
}

struct Case {
  const char* name;
  std::function<std::unique_ptr<Sampler>()> make;
};

std::vector<Case> all_samplers() {
  const auto stream = counting(200, {0, 7, 8, 60, 199});
  const Range range{3, 104};
  const WindowOptions options{.batch = 3, .length = 7, .document_starts = true};
  const WindowOptions single{.batch = 1, .length = 7, .document_starts = true};
  return {{"random", [=] { return std::make_unique<RandomWindows>(stream, range, options, 5); }},
          {"shuffled", [=] { return std::make_unique<ShuffledWindows>(stream, range, options, 5); }},
          {"lanes", [=] { return std::make_unique<SequentialLanes>(stream, range, options); }},
          {"evaluation", [=] { return std::make_unique<EvaluationWindows>(stream, range, options); }},
          {"ordered", [=] { return std::make_unique<OrderedEvaluation>(stream, range, single); }}};
}

// What a checkpoint keeps is enough, at every batch and through JSON.
TEST(Samplers, ContinueFromAnyPosition) {
  for (const auto& [name, make] : all_samplers()) {
    SCOPED_TRACE(name);
    const auto whole = make();
    for (int step = 0; step < 40; ++step) {
      const auto resumed = make();
      resumed->seek(nlohmann::json::parse(nlohmann::json(whole->position()).dump()).get<Position>());
      const auto expected = whole->next();
      const auto got = resumed->next();
      ASSERT_EQ(expected.has_value(), got.has_value());
      if (!expected) break;
      expect_equal(*got, *expected);
      EXPECT_EQ(expected->after, whole->position());
      EXPECT_EQ(expected->after.step, step + 1);
    }
  }
}

TEST(Samplers, PrefetchedBatchesAreTheSame) {
  for (const auto& [name, make] : all_samplers()) {
    SCOPED_TRACE(name);
    const auto direct = make();
    const auto ahead = make();
    Prefetcher<Batch> prefetcher([&] { return ahead->next(); }, 3);
    for (int step = 0; step < 40; ++step) {
      const auto expected = direct->next();
      const auto got = prefetcher.next();
      ASSERT_EQ(expected.has_value(), got.has_value());
      if (!expected) break;
      expect_equal(*got, *expected);
    }
  }
}

TEST(Samplers, MarkDocumentStarts) {
  for (const auto& [name, make] : all_samplers()) {
    SCOPED_TRACE(name);
    const auto sampler = make();
    for (int step = 0; step < 40; ++step) {
      const auto batch = sampler->next();
      if (!batch) break;
      const auto& x = batch->input;
      EXPECT_EQ(batch->starts.scalar_type(), torch::kBool);
      EXPECT_TRUE(torch::equal(batch->starts, (x == 7).logical_or(x == 8).logical_or(x == 60)));
    }
  }
  RandomWindows plain(counting(10), {0, 10}, {.batch = 1, .length = 2}, 1);
  EXPECT_FALSE(plain.next()->starts.defined());
}

TEST(Samplers, ForeignPositionsAreErrors) {
  for (const auto& [name, make] : all_samplers()) {
    const auto sampler = make();
    for (const Position& position : {Position{0, 1000, 0}, Position{-1, 0, 0}, Position{0, -1, 0}, Position{0, 0, -1}})
      EXPECT_THAT(error_of([&] { sampler->seek(position); }), HasSubstr("is not of this range")) << name;
    EXPECT_EQ(sampler->position(), Position{});
  }
  EXPECT_EQ(error_of([] { nlohmann::json({{"epoch", 0}, {"index", 0}}).get<Position>(); }),
            R"(data position: must have the key 'step', got {"epoch":0,"index":0})");
  EXPECT_THAT(error_of([] { nlohmann::json(3).get<Position>(); }), HasSubstr("must have the key 'epoch', got 3"));
  for (const char* bad : {"-1", "1.5", "\"1\"", "18446744073709551615"}) {
    const auto json = nlohmann::json::parse(fmt::format(R"({{"epoch": 0, "index": 0, "step": {}}})", bad));
    EXPECT_EQ(error_of([&] { json.get<Position>(); }),
              fmt::format("data position: 'step' must be a whole number from 0 on, got {}", bad));
  }
}

TEST(Samplers, RangesThatAreTooShort) {
  const auto stream = counting(100);
  const WindowOptions options{.batch = 2, .length = 8};
  EXPECT_NO_THROW(RandomWindows(stream, {10, 19}, options, 1));
  EXPECT_NO_THROW(ShuffledWindows(stream, {10, 19}, options, 1));
  EXPECT_NO_THROW(SequentialLanes(stream, {10, 27}, options));
  EXPECT_NO_THROW(EvaluationWindows(stream, {10, 12}, options));
  const std::string text = "sampler: windows of 8 need a range of at least 9 tokens, got 8";
  EXPECT_EQ(error_of([&] { RandomWindows(stream, {10, 18}, options, 1); }), text);
  EXPECT_EQ(error_of([&] { ShuffledWindows(stream, {10, 18}, options, 1); }), text);
  EXPECT_EQ(error_of([&] { SequentialLanes(stream, {10, 26}, options); }),
            "sampler: 2 lanes of windows of 8 need a range of at least 2 x 8 + 1 tokens, got 16");
  EXPECT_EQ(error_of([&] { EvaluationWindows(stream, {10, 11}, options); }),
            "sampler: evaluation needs a range of at least 2 tokens, got 1");
  EXPECT_THROW(RandomWindows(stream, {10, 10}, options, 1), Error);
  EXPECT_EQ(error_of([&] { RandomWindows(stream, {90, 101}, options, 1); }),
            "sampler: range [90, 101) must lie inside the stream of 100 tokens");
  EXPECT_THROW(RandomWindows(stream, {-1, 50}, options, 1), Error);
  EXPECT_THROW(RandomWindows(stream, {50, 40}, options, 1), Error);
  EXPECT_THROW(RandomWindows(stream, {0, 50}, {.batch = 0, .length = 8}, 1), Error);
  EXPECT_THROW(RandomWindows(stream, {0, 50}, {.batch = 1, .length = 0}, 1), Error);
  EXPECT_THROW(OrderedEvaluation(stream, {0, 50}, options), Error);
}

TEST(RandomWindows, EveryBeginningIsEquallyLikely) {
  RandomWindows sampler(counting(100), {20, 35}, {.batch = 5, .length = 6}, 3);
  std::map<int64_t, int> seen;
  for (int step = 0; step < 1800; ++step) {
    const auto batch = sampler.next();
    expect_windows(*batch, 5, 6);
    EXPECT_TRUE(batch->fresh);
    for (const int64_t begin : first_column(*batch)) ++seen[begin];
  }
  ASSERT_EQ(seen.size(), 9u);  // 20 to 28: the last target of the last is 34
  EXPECT_EQ(seen.begin()->first, 20);
  for (const auto& [begin, count] : seen) EXPECT_NEAR(count, 1000, 160) << begin;
}

TEST(RandomWindows, RowsDependOnSeedStepAndRowAlone) {
  const auto stream = counting(100'000);
  RandomWindows two(stream, {0, 100'000}, {.batch = 2, .length = 4}, 3);
  RandomWindows five(stream, {0, 100'000}, {.batch = 5, .length = 4}, 3);
  RandomWindows other(stream, {0, 100'000}, {.batch = 5, .length = 4}, 4);
  for (int step = 0; step < 5; ++step) {
    const auto batch = five.next()->input;
    EXPECT_TRUE(torch::equal(two.next()->input, batch.slice(0, 0, 2)));
    EXPECT_FALSE(torch::equal(other.next()->input, batch));
  }
}

TEST(ShuffledWindows, EveryWindowOnceAnEpoch) {
  // 45 targets: six windows of 7, three targets left over; batches of 4 cross the borders of epochs.
  ShuffledWindows sampler(counting(100), {10, 56}, {.batch = 4, .length = 7}, 3);
  EXPECT_EQ(sampler.windows(), 6);
  Numbers row;
  for (int step = 0; step < 30; ++step) {
    const auto batch = sampler.next();
    expect_windows(*batch, 4, 7);
    const Numbers begins = first_column(*batch);
    row.insert(row.end(), begins.begin(), begins.end());
    EXPECT_EQ(batch->after, (Position{(step + 1) * 4 / 6, (step + 1) * 4 % 6, step + 1}));
  }
  std::set<Numbers> orders;
  for (size_t epoch = 0; epoch < 20; ++epoch) {
    Numbers order(row.begin() + epoch * 6, row.begin() + (epoch + 1) * 6);
    orders.insert(order);
    std::ranges::sort(order);
    EXPECT_THAT(order, ElementsAre(10, 17, 24, 31, 38, 45)) << epoch;
  }
  EXPECT_GE(orders.size(), 18u);
}

TEST(SequentialLanes, WalkAndWrapTogether) {
  // 31 targets in 3 lanes of 10: two windows of 4 each.
  SequentialLanes sampler(counting(100), {10, 42}, {.batch = 3, .length = 4});
  EXPECT_EQ(sampler.steps(), 2);
  for (int pass = 0; pass < 3; ++pass) {
    for (int step = 0; step < 2; ++step) {
      const auto batch = sampler.next();
      expect_windows(*batch, 3, 4);
      EXPECT_THAT(first_column(*batch), ElementsAre(10 + 4 * step, 20 + 4 * step, 30 + 4 * step));
      EXPECT_EQ(batch->fresh, step == 0);
    }
    EXPECT_EQ(sampler.position(), (Position{pass + 1, 0, 2 * pass + 2}));
  }
}

Numbers targets_of(Sampler& sampler, std::vector<Numbers>& shapes) {
  Numbers targets;
  while (const auto batch = sampler.next()) {
    expect_windows(*batch, batch->input.size(0), batch->input.size(1));
    shapes.push_back(batch->input.sizes().vec());
    const int64_t* data = batch->target.data_ptr<int64_t>();
    targets.insert(targets.end(), data, data + batch->target.numel());
  }
  EXPECT_FALSE(sampler.next());
  return targets;
}

TEST(EvaluationWindows, EachTargetOnceForAllSizes) {
  for (int64_t n = 2; n < 40; ++n) {
    for (const int64_t length : {1, 2, 5, 7, 64}) {
      for (const int64_t rows : {1, 3}) {
        std::vector<Numbers> shapes;
        EvaluationWindows sampler(counting(100), {10, 10 + n}, {.batch = rows, .length = length});
        Numbers expected(n - 1);
        std::iota(expected.begin(), expected.end(), 11);
        EXPECT_EQ(targets_of(sampler, shapes), expected) << n << " " << length << " " << rows;
      }
    }
  }
}

TEST(EvaluationWindows, BatchesAreRectangles) {
  std::vector<Numbers> shapes;
  EvaluationWindows sampler(counting(100), {0, 41}, {.batch = 3, .length = 7});  // 40 targets = 5 x 7 + 5
  targets_of(sampler, shapes);
  EXPECT_THAT(shapes, ElementsAre(Numbers{3, 7}, Numbers{2, 7}, Numbers{1, 5}));
  sampler.seek({});
  EXPECT_TRUE(sampler.next()->fresh);
  EXPECT_TRUE(sampler.next()->fresh);
}

TEST(OrderedEvaluation, OnlyTheFirstWindowIsFresh) {
  OrderedEvaluation sampler(counting(100), {3, 20}, {.batch = 1, .length = 7});
  const auto first = sampler.next();
  expect_windows(*first, 1, 7);
  EXPECT_TRUE(first->fresh);
  EXPECT_FALSE(sampler.next()->fresh);
  const auto last = sampler.next();
  expect_windows(*last, 1, 2);
  EXPECT_FALSE(last->fresh);
  EXPECT_FALSE(sampler.next());
}

TEST(SegmentOffsets, RowsAndDocumentsStartSegments) {
  const auto starts = torch::zeros({3, 4}, torch::kBool);
  starts[0][0] = true;  // also the start of a row: one segment
  starts[0][2] = true;
  starts[2][3] = true;
  const auto offsets = segment_offsets(starts);
  EXPECT_EQ(offsets.scalar_type(), torch::kInt64);
  EXPECT_TRUE(torch::equal(offsets, torch::tensor({0, 2, 4, 8, 11, 12}, torch::kInt64)));
  // transposed, the marks are at 0, 6 and 11 of four rows of three
  EXPECT_TRUE(torch::equal(segment_offsets(starts.t()), torch::tensor({0, 3, 6, 9, 11, 12}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(segment_offsets(torch::zeros({0, 4}, torch::kBool)), torch::zeros({1}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(segment_offsets(torch::zeros({2, 0}, torch::kBool)), torch::zeros({1}, torch::kInt64)));
  EXPECT_THROW(segment_offsets(torch::zeros({4}, torch::kBool)), Error);
  EXPECT_THROW(segment_offsets(torch::zeros({4, 4})), Error);
}

TEST(Samplers, TinyshakespeareAsInItsConfig) {
  const auto path = shared_data("text/tinyshakespeare.txt.xz");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  const auto stream = std::make_shared<const ByteStream>(read_text({path}));
  const Split split = split_at_end(stream->size(), 0.1);
  RandomWindows train(stream, split.train, {.batch = 12, .length = 64}, 1);
  for (int step = 0; step < 100; ++step) {
    const auto batch = train.next();
    ASSERT_EQ(batch->input.sizes(), (std::vector<int64_t>{12, 64}));
    EXPECT_TRUE(torch::equal(batch->input.slice(1, 1), batch->target.slice(1, 0, 63)));
    EXPECT_LT(batch->target.max().item<int64_t>(), 128);
  }
  EvaluationWindows evaluation(stream, split.validation, {.batch = 32, .length = 64});
  std::string targets;
  while (const auto batch = evaluation.next()) {
    const int64_t* data = batch->target.data_ptr<int64_t>();
    targets.append(data, data + batch->target.numel());
  }
  Numbers held_out(split.validation.size() - 1);
  stream->copy(split.validation.begin + 1, split.validation.size() - 1, held_out.data());
  EXPECT_TRUE(targets == std::string(held_out.begin(), held_out.end()));
}

}  // namespace
}  // namespace adder::data
