#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace adder::cli {

// One line of a chart, through its points in their order; x and y are equally long.
struct Series {
  std::string name = {};  // for the legend; empty: not listed there
  std::vector<double> x = {}, y = {};
};

struct ChartOptions {
  std::string title = {}, x_label = {}, y_label = {};
  bool log_x = false, log_y = false;
  std::optional<double> y_min = {}, y_max = {};  // without them the axis follows the points
  int64_t width = 900, height = 540;             // in points
  int64_t pixels_per_point = 2;                  // so that the picture is sharp on fine screens
};

// Draws the lines as a PNG file, which it creates or replaces at once. A point that is not finite (or not above zero on
// a logarithmic axis) is a gap. Throws adder::Error where no point can be drawn.
void draw_chart(const std::filesystem::path& path, const std::vector<Series>& series, const ChartOptions& options);

}  // namespace adder::cli
