#pragma once

#include <gtest/gtest.h>

#include <string>

#include "adder/core/error.h"

namespace adder {

// The message of the adder::Error that call() throws; "no error" where it throws none.
template <typename Call>
std::string error_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// The same behind `start`, with which it must begin.
template <typename Call>
std::string error_behind(const std::string& start, Call&& call) {
  const std::string message = error_of(call);
  if (message == "no error") return message;
  EXPECT_TRUE(message.starts_with(start)) << message;
  return message.starts_with(start) ? message.substr(start.size()) : message;
}

}  // namespace adder
