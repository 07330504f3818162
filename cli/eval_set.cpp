#include "cli/eval_set.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "adder/core/check.h"
#include "adder/core/json_text.h"
#include "adder/data/compressed_file.h"
#include "adder/infer/likelihood.h"

namespace adder::cli {
namespace {

using nlohmann::ordered_json;

// A line: continuations after contexts (one of the two may be several), and which is right.
struct Example {
  std::vector<std::string> contexts, continuations;
  size_t gold = 0;
  bool by_choice = false;  // else there is one continuation of one context

  size_t options() const { return std::max(contexts.size(), continuations.size()); }
  const std::string& context(size_t i) const { return contexts[contexts.size() == 1 ? 0 : i]; }
  const std::string& continuation(size_t i) const { return continuations[continuations.size() == 1 ? 0 : i]; }
};

std::vector<std::string> texts_of(const ordered_json& line, const char* key, const std::string& where) {
  const ordered_json& value = line[key];
  const std::string rule = fmt::format("{}: \"{}\" must be a text or a list of texts", where, key);
  if (value.is_string()) return {value.get<std::string>()};
  ADDER_CHECK(value.is_array() && !value.empty(), "{}, got {}", rule, value.type_name());
  std::vector<std::string> texts;
  for (const ordered_json& text : value) {
    ADDER_CHECK(text.is_string(), "{}, got a list with {}", rule, text.type_name());
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

Example read_example(std::string_view text, const std::string& where) {
  const ordered_json line = core::parse_json(text, where);
  const bool one = line.is_object() && line.contains("ctx") && line.contains("target");
  const bool choices = line.is_object() && line.contains("ctx") && line.contains("choices");
  const bool contexts = line.is_object() && line.contains("ctxs") && line.contains("target");
  ADDER_CHECK(one || choices || contexts,
              "{}: must hold \"ctx\" and \"target\", \"ctx\" and \"choices\", or \"ctxs\" and \"target\"", where);
  Example example;
  example.contexts = texts_of(line, contexts ? "ctxs" : "ctx", where);
  example.continuations = texts_of(line, choices ? "choices" : "target", where);
  example.by_choice = !one;
  ADDER_CHECK(!one || example.options() == 1, "{}: \"ctx\" and \"target\" must be texts", where);
  ADDER_CHECK(example.contexts.size() == 1 || example.continuations.size() == 1,
              "{}: either the contexts or the continuations may be several", where);
  if (one) return example;
  const bool is_index = line.contains("gold") && line["gold"].is_number_unsigned();
  ADDER_CHECK(is_index && line["gold"].get<uint64_t>() < example.options(),
              "{}: \"gold\" must be a whole number in [0, {}), got {}", where, example.options(),
              line.contains("gold") ? line["gold"].dump() : "none");
  example.gold = line["gold"].get<size_t>();
  return example;
}

infer::LikelihoodRequest request_for(std::string context, std::string continuation, const TextTokens& tokens) {
  // Spaces at the end of a context belong to the word that follows.
  const size_t kept = context.find_last_not_of(" \t\n\r\f\v") + 1;
  continuation.insert(0, context.substr(kept));
  context.resize(kept);
  if (context.empty()) return {{tokens.start_token()}, tokens.encode(continuation)};
  infer::LikelihoodRequest request{tokens.encode(context + continuation), {}};
  const auto border = request.context.begin() +
                      static_cast<std::ptrdiff_t>(std::min(tokens.encode(context).size(), request.context.size()));
  request.continuation.assign(border, request.context.end());
  request.context.erase(border, request.context.end());
  return request;
}

// The harness that made these sets divides by the choice without the space before it.
double bytes_of(const std::string& choice) {
  return std::max<double>(1, static_cast<double>(choice.size() - (choice.starts_with(' ') ? 1 : 0)));
}

}  // namespace

SetScore evaluate_set(const models::MambaLM& model, const TextTokens& tokens, const std::filesystem::path& path,
                      int64_t limit) {
  const std::string text = data::read_file(path);
  std::vector<Example> examples;
  std::vector<infer::LikelihoodRequest> requests;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size() && (limit == 0 || number < limit);) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    const std::string where = fmt::format("{}: line {}", path.string(), ++number);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    examples.push_back(read_example(line, where));
    const Example& example = examples.back();
    for (size_t i = 0; i < example.options(); ++i) {
      requests.push_back(request_for(example.context(i), example.continuation(i), tokens));
      ADDER_CHECK(!requests.back().continuation.empty(), "{}: continuation {} adds no token to its context", where, i);
    }
  }
  ADDER_CHECK(!examples.empty(), "{}: holds no examples", path.string());
  ADDER_CHECK(std::ranges::all_of(examples, [&](const Example& e) { return e.by_choice == examples[0].by_choice; }),
              "{}: all lines must be of one form", path.string());

  const std::vector<infer::Likelihood> scored = infer::likelihoods(model, requests);
  SetScore score;
  score.examples = static_cast<int64_t>(examples.size());
  double right = 0, right_by_byte = 0, log_probability = 0;
  bool choices = false;
  for (size_t e = 0, at = 0; e < examples.size(); at += examples[e].options(), ++e) {
    const Example& example = examples[e];
    if (!example.by_choice) {
      right += scored[at].first_choice ? 1 : 0;
      log_probability += scored[at].log_probability;
      continue;
    }
    choices = choices || example.continuations.size() > 1;
    const auto best = [&](const auto& value_of) {  // the first of the largest
      size_t found = 0;
      for (size_t i = 1; i < example.options(); ++i)
        if (value_of(i) > value_of(found)) found = i;
      return found;
    };
    right += best([&](size_t i) { return scored[at + i].log_probability; }) == example.gold ? 1 : 0;
    right_by_byte += best([&](size_t i) {
                       return scored[at + i].log_probability / bytes_of(example.continuation(i));
                     }) == example.gold
                         ? 1
                         : 0;
  }
  const auto count = static_cast<double>(examples.size());
  score.accuracy = right / count;
  if (choices) score.normed_accuracy = right_by_byte / count;
  if (!examples[0].by_choice) score.perplexity = std::exp(-log_probability / count);
  return score;
}

}  // namespace adder::cli
