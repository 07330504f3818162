#include "adder/infer/generate.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "adder/core/check.h"
#include "adder/device/device.h"
#include "adder/infer/chooser.h"

namespace adder::infer {
namespace {

using Tokens = std::vector<int64_t>;

class Stopwatch {
 public:
  // Seconds since the last call, or since the beginning.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// The prompts as they go in, all arguments checked.
std::vector<Tokens> prepared(const DecodeSession& session, const std::vector<Tokens>& prompts,
                             const GenerateOptions& options) {
  options.sampling.check();
  const int64_t vocab = session.vocab_size();
  for (const int64_t token : options.sampling.stop_tokens)
    ADDER_CHECK(token >= 0 && token < vocab, "generate: stop token {} is outside the vocabulary [0, {})", token, vocab);
  ADDER_CHECK(options.start_token >= -1 && options.start_token < vocab,
              "generate: start_token must be in the vocabulary [0, {}), or -1 for none, got {}", vocab,
              options.start_token);
  ADDER_CHECK(options.row_numbers.empty() || options.row_numbers.size() == prompts.size(),
              "generate: {} row numbers for {} prompts", options.row_numbers.size(), prompts.size());
  std::vector<Tokens> fed = prompts;
  if (session.rows() > 0) return fed;
  for (size_t row = 0; row < fed.size(); ++row) {
    if (!fed[row].empty()) continue;
    ADDER_CHECK(options.start_token >= 0, "generate: the prompt of row {} is empty, and there is no start_token", row);
    fed[row] = {options.start_token};
  }
  return fed;
}

}  // namespace

void GenerateOptions::visit(core::FieldVisitor& v) {
  sampling.visit(v);
  v.field("start_token", start_token, "the token that an empty prompt stands for; -1: an empty prompt is an error",
          {.min = -1});
  v.field("piece_tokens", piece_tokens,
          "prompt tokens that go through the model at once, at most; 0: 4096, on a GPU 16384",
          {.min = 0, .max = 1 << 24});
}

Generation generate(DecodeSession& session, const std::vector<Tokens>& prompts, const GenerateOptions& options,
                    const TokenCallback& callback) {
  std::vector<Tokens> histories = prepared(session, prompts, options);
  const Tokens& stops = options.sampling.stop_tokens;
  Generation result;
  result.rows.resize(prompts.size());
  for (const Tokens& prompt : histories) result.prompt_tokens += static_cast<int64_t>(prompt.size());

  Stopwatch watch;
  session.prefill(histories);
  device::synchronize(session.model()->device());
  result.prompt_seconds = watch.lap();

  std::vector<size_t> active(prompts.size());
  std::iota(active.begin(), active.end(), size_t{0});
  const std::unique_ptr<Chooser> chooser = make_chooser(session, std::move(histories), options);
  for (int64_t step = 0; step < options.sampling.max_tokens && !active.empty(); ++step) {
    if (step > 0) result.decode_tokens += static_cast<int64_t>(active.size());
    const Tokens chosen = chooser->choose(step);
    std::vector<size_t> places, going_on;  // in the batch and in the call, of the rows that go on
    bool stop_all = false;
    for (size_t i = 0; i < active.size(); ++i) {
      const size_t row = active[i];
      GeneratedRow& out = result.rows[row];
      Proceed proceed = Proceed::kStopRow;
      if (std::find(stops.begin(), stops.end(), chosen[i]) != stops.end()) {
        out.finish = FinishReason::kStopToken;
      } else {
        out.tokens.push_back(chosen[i]);
        proceed = callback ? callback(static_cast<int64_t>(row), chosen[i]) : Proceed::kContinue;
        if (proceed != Proceed::kContinue) out.finish = FinishReason::kCallback;
      }
      stop_all = proceed == Proceed::kStopAll;
      if (stop_all) {
        going_on.insert(going_on.end(), active.begin() + static_cast<std::ptrdiff_t>(i) + 1, active.end());
        break;
      }
      if (proceed == Proceed::kStopRow) continue;
      places.push_back(i);
      going_on.push_back(row);
    }
    if (stop_all) {
      for (const size_t row : going_on) result.rows[row].finish = FinishReason::kCallback;
      break;
    }
    chooser->keep(places);
    active = std::move(going_on);
  }
  session.set_state({});
  result.decode_seconds = watch.lap();
  return result;
}

Generation generate(const models::MambaLM& model, const std::vector<Tokens>& prompts, const GenerateOptions& options,
                    const TokenCallback& callback) {
  DecodeSession session(model, options.piece_tokens);
  return generate(session, prompts, options, callback);
}

}  // namespace adder::infer
