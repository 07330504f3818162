#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace adder {

// A mistake in what the user gave (an argument, a file, a configuration). The text names the thing, the rule, what was
// expected and what came.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(fmt::format(text, std::forward<Args>(args)...));
}

}  // namespace adder

// ADDER_CHECK(condition, "format", args...): throws adder::Error unless the condition holds.
#define ADDER_CHECK(condition, ...) \
  do {                              \
    if (!(condition)) [[unlikely]]  \
      ::adder::fail(__VA_ARGS__);   \
  } while (false)
