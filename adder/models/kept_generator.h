#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <mutex>

namespace adder::models {

// Keeps the default random generator of the CPU as it is: a model that is made only to take other weights draws its
// initial ones from it.
class KeptGenerator {
 public:
  KeptGenerator() {
    const std::scoped_lock lock(generator_.mutex());
    state_ = generator_.get_state();
  }
  KeptGenerator(const KeptGenerator&) = delete;
  KeptGenerator& operator=(const KeptGenerator&) = delete;
  ~KeptGenerator() {
    const std::scoped_lock lock(generator_.mutex());
    generator_.set_state(state_);
  }

 private:
  at::Generator generator_ = at::detail::getDefaultCPUGenerator();
  at::Tensor state_;
};

}  // namespace adder::models
