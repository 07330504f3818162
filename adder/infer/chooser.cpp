#include "adder/infer/chooser.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <algorithm>
#include <numeric>

#include "adder/core/check.h"

namespace adder::infer {
namespace {

using Tokens = std::vector<int64_t>;

// Below this many logits a thread, starting it costs more than it saves.
constexpr int64_t kLogitsPerThread = 16384;

class HostChooser : public Chooser {
 public:
  HostChooser(DecodeSession& session, std::vector<Tokens> histories, const GenerateOptions& options)
      : session_(session), histories_(std::move(histories)), options_(options), rows_(histories_.size()) {
    std::iota(rows_.begin(), rows_.end(), size_t{0});
  }

  Tokens choose(int64_t step) override {
    const torch::Tensor logits = step > 0 ? session_.step(chosen_) : session_.state().logits.contiguous();
    const int64_t vocab = session_.vocab_size();
    const float* values = logits.const_data_ptr<float>();
    chosen_.resize(rows_.size());
    const auto choose_range = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const size_t row = rows_[static_cast<size_t>(i)];
        try {
          chosen_[static_cast<size_t>(i)] =
              sample_token({values + i * vocab, static_cast<size_t>(vocab)}, options_.sampling,
                           row_number(options_, row), step, histories_[row]);
        } catch (const Error& error) {
          fail_at(static_cast<int64_t>(row), step, error.what());
        }
      }
    };
    at::parallel_for(0, static_cast<int64_t>(rows_.size()), std::max<int64_t>(1, kLogitsPerThread / vocab),
                     choose_range);
    for (size_t i = 0; i < rows_.size(); ++i) histories_[rows_[i]].push_back(chosen_[i]);
    return chosen_;
  }

  void keep(const std::vector<size_t>& places) override {
    if (places.size() == rows_.size()) return;
    session_.select({places.begin(), places.end()});
    for (size_t i = 0; i < places.size(); ++i) {
      rows_[i] = rows_[places[i]];
      chosen_[i] = chosen_[places[i]];
    }
    rows_.resize(places.size());
    chosen_.resize(places.size());
  }

 private:
  DecodeSession& session_;
  std::vector<Tokens> histories_;
  const GenerateOptions& options_;
  std::vector<size_t> rows_;  // of the call, which the batch's rows are
  Tokens chosen_;
};

}  // namespace

void fail_at(int64_t row, int64_t step, const std::string& what) {
  fail("generate: row {} after {} tokens: {}", row, step, what);
}

std::unique_ptr<Chooser> make_chooser(DecodeSession& session, std::vector<Tokens> histories,
                                      const GenerateOptions& options) {
  if (session.model()->device().is_cuda()) return make_device_chooser(session, std::move(histories), options);
  return std::make_unique<HostChooser>(session, std::move(histories), options);
}

}  // namespace adder::infer
