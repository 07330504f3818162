#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

// Options that say in words what they take. Each takes one value; refusals are CLI::ValidationError.
namespace adder::cli {

// No size that a command takes is larger, so that products of two stay in 64 bits.
inline constexpr int64_t kLargestSize = int64_t{1} << 30;
inline constexpr int64_t kMostThreads = 4096;

// A whole number in [min, max], with its default in the help.
CLI::Option* add_whole_number(CLI::App& app, const std::string& name, int64_t& value, const std::string& help,
                              int64_t min, int64_t max = kLargestSize);
CLI::Option* add_threads(CLI::App& app, int64_t& threads);
CLI::Option* add_device(CLI::App& app, std::string& device);
// A finite real.
CLI::Option* add_real(CLI::App& app, const std::string& name, std::optional<double>& value, const std::string& help);
// Texts, one each time the option is given, taken as they are: CLI11 would make two of "[a, b]" and none of "{}".
CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                       const std::string& help);

}  // namespace adder::cli
