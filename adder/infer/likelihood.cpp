#include "adder/infer/likelihood.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/infer/evaluation_mode.h"

namespace adder::infer {
namespace {

using torch::Tensor;

// Sequences of tokens one after another, as the model takes them.
struct Packed {
  std::vector<int64_t> tokens, offsets = {0};

  void append(const int64_t* from, size_t count) {
    tokens.insert(tokens.end(), from, from + count);
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  Tensor ids(torch::Device device) const { return torch::tensor(tokens, torch::kLong).view({1, -1}).to(device); }
  nn::SequenceInfo sequence() const { return {.mask = {}, .cu_seqlens = torch::tensor(offsets, torch::kLong)}; }
};

void check_requests(const std::vector<LikelihoodRequest>& requests, int64_t vocab) {
  for (size_t i = 0; i < requests.size(); ++i) {
    ADDER_CHECK(!requests[i].context.empty() && !requests[i].continuation.empty(),
                "likelihoods: request {} must have a context and a continuation of at least one token", i);
    for (const auto* tokens : {&requests[i].context, &requests[i].continuation})
      for (const int64_t token : *tokens)
        ADDER_CHECK(token >= 0 && token < vocab, "likelihoods: request {}: tokens must lie in [0, {}), got {}", i,
                    vocab, token);
  }
}

}  // namespace

std::vector<Likelihood> likelihoods(const models::MambaLM& model, const std::vector<LikelihoodRequest>& requests,
                                    int64_t batch_tokens) {
  check_requests(requests, model->options().vocab_size);
  const torch::Device device = model->device();
  if (batch_tokens == 0) batch_tokens = device.is_cuda() ? 65536 : 4096;
  const c10::InferenceMode no_gradients;
  models::MambaLM runs = model;
  const EvaluationMode evaluation(runs);

  std::vector<Likelihood> out(requests.size());
  for (size_t first = 0, last = 0; first < requests.size(); first = last) {
    // All but the last token of each context leave a state; that token and all but the last of the continuation go on
    // from it.
    Packed contexts, continuations;
    std::vector<int64_t> targets, state_of;
    for (; last < requests.size(); ++last) {
      const LikelihoodRequest& request = requests[last];
      const bool shared = last > first && request.context == requests[last - 1].context;
      const size_t more = (shared ? 0 : request.context.size() - 1) + request.continuation.size();
      const size_t sum = contexts.tokens.size() + continuations.tokens.size() + more;
      if (last > first && sum > static_cast<size_t>(batch_tokens)) break;
      if (!shared) contexts.append(request.context.data(), request.context.size() - 1);
      state_of.push_back(static_cast<int64_t>(contexts.offsets.size()) - 2);
      continuations.tokens.push_back(request.context.back());
      continuations.append(request.continuation.data(), request.continuation.size() - 1);
      targets.insert(targets.end(), request.continuation.begin(), request.continuation.end());
    }
    const models::LMState states =
        runs->hidden(contexts.ids(device), {}, contexts.sequence()).second.select(torch::tensor(state_of).to(device));
    const auto loss = runs->loss(continuations.ids(device), torch::tensor(targets).view({1, -1}).to(device), states,
                                 continuations.sequence());
    const Tensor each = loss.each.to(torch::kCPU, torch::kDouble).contiguous();
    const Tensor right = loss.predictions.to(torch::kCPU).eq(torch::tensor(targets)).contiguous();
    const auto* const losses = each.const_data_ptr<double>();
    const auto* const hits = right.const_data_ptr<bool>();
    for (size_t i = first; i < last; ++i)
      for (int64_t t = continuations.offsets[i - first]; t < continuations.offsets[i - first + 1]; ++t) {
        out[i].log_probability -= losses[t];
        out[i].first_choice = out[i].first_choice && hits[t];
      }
  }
  return out;
}

}  // namespace adder::infer
