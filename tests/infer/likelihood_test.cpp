#include "adder/infer/likelihood.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/core/error.h"
#include "tests/device.h"
#include "tests/infer/tiny_model.h"

namespace adder::infer {
namespace {

using adder::tests::Device;
using tests::tiny_model;

std::vector<LikelihoodRequest> requests(int64_t vocab) {
  std::vector<LikelihoodRequest> all;
  torch::manual_seed(5);
  const auto draw = [&](int64_t count) {
    const torch::Tensor ids = torch::randint(0, vocab, {count}, torch::kLong);
    return std::vector<int64_t>(ids.const_data_ptr<int64_t>(), ids.const_data_ptr<int64_t>() + count);
  };
  for (const int64_t context : {1, 2, 7, 40, 3}) {
    const std::vector<int64_t> shared = draw(context);
    for (const int64_t continuation : {1, 5, 2}) all.push_back({shared, draw(continuation)});
  }
  return all;
}

// One request at a time, from the logits of the whole.
Likelihood expected(models::MambaLM model, const LikelihoodRequest& request) {
  const torch::NoGradGuard no_grad;
  std::vector<int64_t> whole = request.context;
  whole.insert(whole.end(), request.continuation.begin(), request.continuation.end());
  const torch::Tensor ids = torch::tensor(whole).view({1, -1}).to(model->device());
  const torch::Tensor logits = model->forward(ids).first[0].to(torch::kDouble).cpu();
  Likelihood out;
  for (size_t i = 0; i < request.continuation.size(); ++i) {
    const torch::Tensor row = logits[static_cast<int64_t>(request.context.size() + i) - 1];
    out.log_probability += row.log_softmax(0)[request.continuation[i]].item<double>();
    out.first_choice = out.first_choice && row.argmax().item<int64_t>() == request.continuation[i];
  }
  return out;
}

TEST(Likelihoods, AreThoseOfTheWholeInAnyBatch) {
  adder::tests::for_each_device([] {
    models::MambaLM model = tiny_model();
    model->eval();
    model->to(adder::tests::current_device() == Device::kCpu ? torch::kCPU : torch::kCUDA);
    std::vector<LikelihoodRequest> all = requests(model->options().vocab_size);
    // One that is the model's own choice.
    const torch::Tensor first =
        model->forward(torch::tensor(all[3].context).view({1, -1}).to(model->device())).first[0][-1].argmax();
    all[3].continuation = {first.item<int64_t>()};
    for (const int64_t batch : {0, 1, 30, 64}) {
      const std::vector<Likelihood> got = likelihoods(model, all, batch);
      ASSERT_EQ(got.size(), all.size());
      for (size_t i = 0; i < all.size(); ++i) {
        const Likelihood want = expected(model, all[i]);
        EXPECT_NEAR(got[i].log_probability, want.log_probability, 1e-4) << i << " in batches of " << batch;
        EXPECT_EQ(got[i].first_choice, want.first_choice) << i;
      }
      EXPECT_TRUE(got[3].first_choice);
    }
  });
}

TEST(Likelihoods, RefusesWhatItCannotScore) {
  const models::MambaLM model = tiny_model();
  EXPECT_THROW(likelihoods(model, {{{}, {1}}}), Error);
  EXPECT_THROW(likelihoods(model, {{{1}, {}}}), Error);
  EXPECT_THROW(likelihoods(model, {{{1}, {model->options().vocab_size}}}), Error);
  EXPECT_TRUE(likelihoods(model, {}).empty());
}

}  // namespace
}  // namespace adder::infer
