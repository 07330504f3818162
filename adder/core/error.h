#pragma once

#include <stdexcept>

namespace adder {

// A mistake in what the user gave (an argument, a file, a configuration). The text names the thing, the rule, what was
// expected and what came.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace adder
