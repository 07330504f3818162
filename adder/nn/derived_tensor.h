#pragma once

#include <torch/types.h>

#include <mutex>
#include <vector>

namespace adder::nn {

// While there is one on this thread, derived tensors are computed each time: work that is recorded must not hold on to
// one that may be dropped.
class NoDerivedTensors {
 public:
  NoDerivedTensors() { ++count(); }
  ~NoDerivedTensors() { --count(); }
  NoDerivedTensors(const NoDerivedTensors&) = delete;
  NoDerivedTensors& operator=(const NoDerivedTensors&) = delete;
  static bool active() { return count() > 0; }

 private:
  static int& count() {
    thread_local int value = 0;
    return value;
  }
};

// A tensor computed from others, kept until one of these changes: is written to, or gets other data. For use without
// gradients, by any number of threads.
class DerivedTensor {
 public:
  template <typename Compute>
  torch::Tensor get(const std::vector<torch::Tensor>& sources, const Compute& compute) {
    if (NoDerivedTensors::active()) return torch::Tensor(compute());
    const std::lock_guard lock(mutex_);
    if (!is_current(sources)) {
      value_ = compute();
      sources_.clear();
      versions_.clear();
      for (const torch::Tensor& source : sources) {
        sources_.push_back(source.defined() ? source.detach() : source);  // keeps the address from being used again
        versions_.push_back(version(source));
      }
    }
    return value_;
  }

 private:
  static int64_t version(const torch::Tensor& t) { return t.defined() && !t.is_inference() ? t._version() : 0; }

  bool is_current(const std::vector<torch::Tensor>& sources) const {
    if (!value_.defined() || sources.size() != sources_.size()) return false;
    for (size_t i = 0; i < sources.size(); ++i) {
      if (sources[i].defined() != sources_[i].defined()) return false;
      if (sources[i].defined() &&
          (sources[i].is_inference() || sources[i].scalar_type() != sources_[i].scalar_type() ||
           sources[i].data_ptr() != sources_[i].data_ptr() || version(sources[i]) != versions_[i]))
        return false;
    }
    return true;
  }

  std::mutex mutex_;
  torch::Tensor value_;
  std::vector<torch::Tensor> sources_;
  std::vector<int64_t> versions_;
};

}  // namespace adder::nn
