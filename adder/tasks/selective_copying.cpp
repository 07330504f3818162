#include "adder/tasks/selective_copying.h"

#include "adder/core/error.h"
#include "adder/core/random.h"

namespace adder::tasks {
namespace {

class Source : public SequenceSource {
 public:
  Source(const SelectiveCopyingOptions& options, int64_t batch, uint64_t seed, int64_t count)
      : SequenceSource(batch, options.noise + 2 * options.tokens, seed, count), options_(options) {}

 private:
  void make(uint64_t seed, uint64_t index, int64_t* input, int64_t* target) const override {
    core::RandomStream random(seed, index);
    const int64_t places = options_.noise + options_.tokens;
    const auto letters = static_cast<uint64_t>(options_.vocab_size - 2);
    std::fill_n(input, places, 0);
    std::fill_n(input + places, options_.tokens, options_.vocab_size - 1);
    // Each place in turn, with the chance that leaves every choice of places equally likely.
    int64_t placed = 0;
    for (int64_t i = 0; i < places && placed < options_.tokens; ++i) {
      if (random.below(static_cast<uint64_t>(places - i)) >= static_cast<uint64_t>(options_.tokens - placed)) continue;
      const int64_t token = 1 + static_cast<int64_t>(random.below(letters));
      input[i] = token;
      target[places + placed++] = token;
    }
  }

  SelectiveCopyingOptions options_;
};

class SelectiveCopying : public Task {
 public:
  explicit SelectiveCopying(const SelectiveCopyingOptions& options) : options_(options) {}
  int64_t vocab_size() const override { return options_.vocab_size; }
  int64_t length() const override { return options_.noise + 2 * options_.tokens; }
  bool scores_sequences() const override { return true; }
  std::unique_ptr<BatchSource> training(int64_t batch, uint64_t seed) const override {
    return std::make_unique<Source>(options_, batch, core::derive_seed(seed, "selective_copying.training"), -1);
  }
  std::unique_ptr<BatchSource> evaluation(int64_t batch, bool) const override {
    return std::make_unique<Source>(options_, batch, core::derive_seed(0, "selective_copying.evaluation"),
                                    options_.evaluation_sequences);
  }

 private:
  SelectiveCopyingOptions options_;
};

}  // namespace

void SelectiveCopyingOptions::visit(core::FieldVisitor& v) {
  v.field("noise", noise, "noise tokens among which the tokens lie", {.min = 0, .max = 1 << 30});
  v.field("tokens", tokens, "tokens to copy", {.min = 1, .max = 1 << 30});
  v.field("vocab_size", vocab_size, "letters, the noise token and the marker", {.min = 3, .max = 1 << 30});
  v.field("evaluation_sequences", evaluation_sequences, "fresh sequences of an evaluation", {.min = 1, .max = 1 << 30});
}

std::unique_ptr<Task> make_selective_copying(const SelectiveCopyingOptions& options) {
  return std::make_unique<SelectiveCopying>(options);
}

}  // namespace adder::tasks
