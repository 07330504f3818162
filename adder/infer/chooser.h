#pragma once

#include <memory>
#include <vector>

#include "adder/infer/generate.h"

namespace adder::infer {

// Where generate() has its tokens from: a batch of rows that go on, choosing one token each at a time.
class Chooser {
 public:
  virtual ~Chooser() = default;
  // The next token of each row that goes on; `step` counts from 0.
  virtual std::vector<int64_t> choose(int64_t step) = 0;
  // Which of them go on, by their places in what choose() gave.
  virtual void keep(const std::vector<size_t>& places) = 0;
};

// After session.prefill(histories); the session's state is the chooser's from here on. options are checked.
std::unique_ptr<Chooser> make_chooser(DecodeSession& session, std::vector<std::vector<int64_t>> histories,
                                      const GenerateOptions& options);

// No token can be chosen for a row of the call: the error that generate() throws.
[[noreturn]] void fail_at(int64_t row, int64_t step, const std::string& what);

inline int64_t row_number(const GenerateOptions& options, size_t row) {
  return options.row_numbers.empty() ? static_cast<int64_t>(row) : options.row_numbers[row];
}

// On the session's GPU, some steps ahead of the host.
std::unique_ptr<Chooser> make_device_chooser(DecodeSession& session, std::vector<std::vector<int64_t>> histories,
                                             const GenerateOptions& options);

}  // namespace adder::infer
