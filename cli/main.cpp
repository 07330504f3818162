#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/nearest_name.h"
#include "adder/core/process.h"
#include "adder/core/version.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace adder::cli {
namespace {

// CLI11 says that a command is missing, not that the word in its place is none.
void check_command(const CLI::App& app) {
  const CLI::App* last = &app;
  while (!last->get_subcommands().empty()) last = last->get_subcommands().back();
  if (last->get_require_subcommand_min() == 0) return;
  const std::vector<std::string> words = last->remaining();
  const auto word = std::find_if(words.begin(), words.end(), [](const auto& text) { return !text.starts_with('-'); });
  if (word == words.end()) return;
  std::vector<std::string> names;
  for (const CLI::App* command : last->get_subcommands([](const CLI::App*) { return true; }))
    names.push_back(command->get_name());
  const auto nearest = core::nearest_name(*word, names);
  fail("unknown {} '{}'; {}", last == &app ? "command" : last->get_name() + " case", *word,
       nearest ? fmt::format("did you mean '{}'?", *nearest) : fmt::format("there are {}", fmt::join(names, ", ")));
}

int run(int argc, char** argv) {
  CLI::App app("Adder: selective state-space models. Train, evaluate and generate with them.", "adder");
  app.require_subcommand(1);
  app.set_version_flag("--version", core::kVersion);
  add_train_command(app);
  add_eval_command(app);
  add_generate_command(app);
  add_convert_command(app);
  add_data_command(app);
  add_bench_command(app);
  add_plot_command(app);
  add_doctor_command(app);
  int code = 0;
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    check_command(app);
    code = app.exit(error);
  }
  flush_output();
  return code;
}

}  // namespace
}  // namespace adder::cli

int main(int argc, char** argv) {
  adder::core::tune_process(argv);
  try {
    return adder::cli::run(argc, argv);
  } catch (const c10::Error& error) {
    fmt::print(stderr, "adder: {}\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    fmt::print(stderr, "adder: {}\n", error.what());
  }
  return 1;
}
