#pragma once

namespace adder::core {

// The project's version, the same as in CMakeLists.txt; it is saved in what Adder writes.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace adder::core
