#include "adder/infer/sampling.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <string>

#include "adder/core/check.h"
#include "adder/core/options_fields.h"
#include "adder/core/random.h"

namespace adder::infer {
namespace {

std::vector<int64_t> parse_tokens(const std::vector<std::string>& texts) {
  std::vector<int64_t> tokens;
  for (const std::string& text : texts) {
    int64_t token = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, token);
    ADDER_CHECK(error == std::errc() && stop == end && token >= 0,
                "stop_tokens must be token ids, whole numbers from 0, got \"{}\"", text);
    tokens.push_back(token);
  }
  return tokens;
}

void check_logits(std::span<const float> logits) {
  bool finite = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    ADDER_CHECK(logits[i] < std::numeric_limits<float>::infinity(),
                "sample: logits must be finite or -inf, the logit of token {} is {}", i, logits[i]);
    finite |= std::isfinite(logits[i]);
  }
  ADDER_CHECK(finite, "sample: no token can be chosen, none of the {} logits is finite", logits.size());
}

void check_history(std::span<const int64_t> history, size_t vocab) {
  for (size_t i = 0; i < history.size(); ++i)
    ADDER_CHECK(history[i] >= 0 && history[i] < static_cast<int64_t>(vocab),
                "sample: token {} at position {} of the history is outside the vocabulary [0, {})", history[i], i,
                vocab);
}

std::vector<Candidate> penalised(std::span<const float> logits, const SamplingOptions& options,
                                 std::span<const int64_t> history) {
  std::vector<Candidate> all(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) all[i] = {static_cast<int64_t>(i), logits[i], 0};
  if (options.repetition_penalty == 1) return all;
  check_history(history, logits.size());
  std::vector<bool> seen(logits.size());
  for (const int64_t token : history) {
    if (seen[static_cast<size_t>(token)]) continue;
    seen[static_cast<size_t>(token)] = true;
    double& logit = all[static_cast<size_t>(token)].logit;
    logit = logit > 0 ? logit / options.repetition_penalty : logit * options.repetition_penalty;
  }
  return all;
}

// Whether a comes before b from the most probable down. Logits are compared, not probabilities: distinct ones may
// round to the same probability.
bool precedes(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Drops what comes after `last`; the order by id stays.
void keep_up_to(std::vector<Candidate>& kept, const Candidate last) {
  std::erase_if(kept, [&last](const Candidate& c) { return precedes(last, c); });
}

void keep_top_k(std::vector<Candidate>& kept, size_t k) {
  if (k == 0 || k >= kept.size()) return;
  std::vector<Candidate> order = kept;
  const auto last = order.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(order.begin(), last, order.end(), precedes);
  keep_up_to(kept, *last);
}

double sum_of(const std::vector<Candidate>& kept) {
  double sum = 0;
  for (const Candidate& c : kept) sum += c.probability;
  return sum;
}

void keep_top_p(std::vector<Candidate>& kept, double p) {
  if (p >= 1) return;
  // A heap, as few of a large vocabulary are walked.
  const auto later = [](const Candidate& a, const Candidate& b) { return precedes(b, a); };
  std::vector<Candidate> heap = kept;
  std::make_heap(heap.begin(), heap.end(), later);
  const double enough = p * sum_of(kept);
  double sum = 0;
  for (auto end = heap.end(); end != heap.begin();) {
    std::pop_heap(heap.begin(), end, later);
    --end;
    sum += end->probability;
    if (sum >= enough) return keep_up_to(kept, *end);
  }
}

}  // namespace

void SamplingOptions::visit(core::FieldVisitor& v) {
  std::vector<std::string> stops;
  for (const int64_t token : stop_tokens) stops.push_back(std::to_string(token));
  v.field("stop_tokens", stops, "token ids that end a row; they are not part of its output");
  stop_tokens = parse_tokens(stops);
  v.field("max_tokens", max_tokens, "tokens generated for a row at most", {.min = 0, .max = 1 << 30});
  v.field("temperature", temperature, "logits are divided by it; 0 takes the most probable token", {.min = 0});
  v.field("top_k", top_k, "only the k most probable tokens; 0: all", {.min = 0});
  v.field("top_p", top_p, "only the most probable tokens that sum to this probability; 1: all", {.min = 0, .max = 1});
  v.field("min_p", min_p, "only tokens with this share of the largest probability; 0: all", {.min = 0, .max = 1});
  v.field("repetition_penalty", repetition_penalty,
          "logits of earlier tokens are divided by it if positive, multiplied if not; 1: off",
          {.min = 0.01, .max = 100});
  v.field("seed", seed, "seed of the draws");
}

void SamplingOptions::check() const {
  SamplingOptions copy = *this;
  for (const core::Field& field : core::collect_fields([&copy](core::FieldVisitor& v) { copy.visit(v); }).fields)
    ADDER_CHECK(core::obeys_rule(field, field.value), "sampling: {} must be {}, is {}", field.name,
                core::field_rule(field), core::format_value(field.value));
}

std::vector<Candidate> candidates(std::span<const float> logits, const SamplingOptions& options,
                                  std::span<const int64_t> history) {
  options.check();
  check_logits(logits);
  if (options.temperature == 0 && options.repetition_penalty == 1)
    return {{std::max_element(logits.begin(), logits.end()) - logits.begin(), 0, 1}};
  std::vector<Candidate> kept = penalised(logits, options, history);
  const Candidate first = *std::min_element(kept.begin(), kept.end(), precedes);
  if (options.temperature == 0) return {{first.token, 0, 1}};
  for (Candidate& c : kept) {
    c.logit = (c.logit - first.logit) / options.temperature;
    c.probability = std::exp(c.logit);
  }
  keep_top_k(kept, static_cast<size_t>(options.top_k));
  keep_top_p(kept, options.top_p);
  // The largest is exp(0) = 1 as yet.
  std::erase_if(kept, [&options](const Candidate& c) { return c.probability == 0 || c.probability < options.min_p; });
  const double sum = sum_of(kept);
  for (Candidate& c : kept) c.probability /= sum;
  return kept;
}

int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, int64_t row, int64_t step,
                     std::span<const int64_t> history) {
  const std::vector<Candidate> kept = candidates(logits, options, history);
  const uint64_t seed = core::derive_seed(static_cast<uint64_t>(options.seed), "infer.sample");
  const double place = core::random_unit(seed, static_cast<uint64_t>(row), static_cast<uint64_t>(step));
  double sum = 0;
  for (const Candidate& c : kept) {
    sum += c.probability;
    if (sum > place) return c.token;
  }
  return kept.back().token;  // rounding left the sum of all below the place
}

}  // namespace adder::infer
