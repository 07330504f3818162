#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <cstdio>

#include "adder/core/memory.h"
#include "adder/core/version.h"
#include "cli/commands.h"

int main(int argc, char** argv) {
  adder::core::keep_freed_memory();
  CLI::App app("Adder: selective state-space models. Train, evaluate and generate with them.", "adder");
  app.require_subcommand(1);
  app.set_version_flag("--version", adder::core::kVersion);
  adder::cli::add_train_command(app);
  adder::cli::add_eval_command(app);
  adder::cli::add_generate_command(app);
  adder::cli::add_bench_command(app);
  adder::cli::add_plot_command(app);
  adder::cli::add_doctor_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const c10::Error& error) {
    fmt::print(stderr, "adder: {}\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "adder: {}\n", error.what());
    return 1;
  }
  return 0;
}
