#include "cli/arguments.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>

namespace adder::cli {
namespace {

using Limits = std::numeric_limits<int64_t>;

[[noreturn]] void refuse(const std::string& name, const std::string& rule, const std::string& text) {
  throw CLI::ValidationError(fmt::format("{} must be {}, got \"{}\"", name, rule, text));
}

int64_t whole_number(const std::string& name, const std::string& text, int64_t min, int64_t max) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error == std::errc::result_out_of_range) value = text[0] == '-' ? Limits::min() : Limits::max();
  const bool whole = error != std::errc::invalid_argument && stop == end;
  if (!whole || value < min) refuse(name, fmt::format("a whole number >= {}", min), text);
  if (value > max) refuse(name, fmt::format("a whole number <= {}", max), text);
  return value;
}

}  // namespace

CLI::Option* add_whole_number(CLI::App& app, const std::string& name, int64_t& value, const std::string& help,
                              int64_t min, int64_t max) {
  const auto read = [=, &value](const CLI::results_t& texts) {
    value = whole_number(name, texts.at(0), min, max);
    return true;
  };
  return app.add_option(name, read, help)->type_name("INT")->default_str(std::to_string(value));
}

CLI::Option* add_threads(CLI::App& app, int64_t& threads) {
  return add_whole_number(app, "--threads", threads, "processor threads; 0: all", 0, kMostThreads);
}

CLI::Option* add_device(CLI::App& app, std::string& device) {
  return app.add_option("--device", device, "cpu, cuda (the first GPU) or cuda:<number>")->capture_default_str();
}

CLI::Option* add_real(CLI::App& app, const std::string& name, std::optional<double>& value, const std::string& help) {
  const auto read = [=, &value](const CLI::results_t& texts) {
    const std::string& text = texts.at(0);
    double real = 0;
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, real);
    if (error != std::errc() || stop != end || !std::isfinite(real)) refuse(name, "a number", text);
    value = real;
    return true;
  };
  return app.add_option(name, read, help)->type_name("FLOAT");
}

CLI::Option* add_texts(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                       const std::string& help) {
  const auto read = [&values](const CLI::results_t& texts) {
    values = texts;
    return true;
  };
  return app.add_option(name, read, help)
      ->type_name("TEXT")
      ->option_text("TEXT")  // CLI11 would write "TEXT ..."
      ->expected(1, CLI::detail::expected_max_vector_size)
      ->allow_extra_args(false);
}

}  // namespace adder::cli
