#include "adder/tasks/induction_heads.h"

#include "adder/core/random.h"

namespace adder::tasks {
namespace {

class Source : public SequenceSource {
 public:
  Source(const InductionHeadsOptions& options, int64_t batch, uint64_t seed, int64_t count)
      : SequenceSource(batch, options.length, seed, count), options_(options) {}

 private:
  void make(uint64_t seed, uint64_t index, int64_t* input, int64_t* target) const override {
    core::RandomStream random(seed, index);
    const int64_t last = options_.length - 1, special = options_.vocab_size - 1;
    for (int64_t i = 0; i < last; ++i) input[i] = static_cast<int64_t>(random.below(static_cast<uint64_t>(special)));
    const auto place =
        static_cast<int64_t>(random.below(static_cast<uint64_t>(last - 1)));  // its successor lies before the end
    input[place] = special;
    input[last] = special;
    target[last] = input[place + 1];
  }

  InductionHeadsOptions options_;
};

class InductionHeads : public Task {
 public:
  explicit InductionHeads(const InductionHeadsOptions& options) : options_(options) {}
  int64_t vocab_size() const override { return options_.vocab_size; }
  int64_t length() const override { return options_.length; }
  std::unique_ptr<BatchSource> training(int64_t batch, uint64_t seed) const override {
    return std::make_unique<Source>(options_, batch, core::derive_seed(seed, "induction_heads.training"), -1);
  }
  std::unique_ptr<BatchSource> evaluation(int64_t batch, bool) const override {
    return std::make_unique<Source>(options_, batch, core::derive_seed(0, "induction_heads.evaluation"),
                                    options_.evaluation_sequences);
  }

 private:
  InductionHeadsOptions options_;
};

}  // namespace

void InductionHeadsOptions::visit(core::FieldVisitor& v) {
  v.field("length", length, "tokens of a sequence", {.min = 3});
  v.field("vocab_size", vocab_size, "tokens, the special one among them", {.min = 2});
  v.field("evaluation_sequences", evaluation_sequences, "fresh sequences of an evaluation", {.min = 1, .max = 1 << 30});
}

std::unique_ptr<Task> make_induction_heads(const InductionHeadsOptions& options) {
  return std::make_unique<InductionHeads>(options);
}

}  // namespace adder::tasks
