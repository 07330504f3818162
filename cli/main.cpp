#include <CLI/CLI.hpp>

int main(int argc, char** argv) {
  CLI::App app("Adder: selective state-space models");
  CLI11_PARSE(app, argc, argv);
  return 0;
}
