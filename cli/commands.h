#pragma once

#include <CLI/CLI.hpp>

namespace adder::cli {

// Each adds one subcommand with its callback.
void add_train_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_convert_command(CLI::App& app);
void add_data_command(CLI::App& app);
void add_bench_command(CLI::App& app);
void add_plot_command(CLI::App& app);
void add_doctor_command(CLI::App& app);

}  // namespace adder::cli
