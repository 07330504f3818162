#pragma once

// The version's numbers, for #if. Versions are semantic: before 1.0 a new minor one may change the interface.
#define ADDER_VERSION_MAJOR 0
#define ADDER_VERSION_MINOR 1
#define ADDER_VERSION_PATCH 0

namespace adder::core {

// The project's version, the same as in CMakeLists.txt; it is saved in what Adder writes.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace adder::core
