#pragma once

#include <fmt/format.h>

#include <utility>

#include "adder/core/error.h"

namespace adder {

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
