#pragma once

#include <gtest/gtest.h>

#include <string>

#include "adder/core/error.h"

namespace adder::core {

// The message of the adder::Error that `call` throws; fails the test where it throws none.
template <typename Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no adder::Error was thrown";
  return {};
}

}  // namespace adder::core
