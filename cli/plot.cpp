#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"
#include "adder/core/nearest_name.h"
#include "cli/arguments.h"
#include "cli/chart.h"
#include "cli/commands.h"

namespace adder::cli {
namespace {
namespace fs = std::filesystem;

struct PlotArguments {
  std::vector<std::string> runs, y, labels;
  std::string out, x = "step", title;
  bool log_x = false, log_y = false;
  int64_t smooth = 1;
  std::optional<double> y_min, y_max;
};

struct Figure {
  std::vector<size_t> lines;  // those that tell it
  std::vector<double> values;
};

struct Metrics {
  std::string path;
  std::vector<double> steps;  // of the lines
  std::map<std::string, Figure> figures;
  std::vector<std::string> names;  // of the figures, as they first appear

  bool has(const std::string& name) const { return figures.contains(name); }
};

void add_line(Metrics& metrics, std::string_view line, const std::string& where) {
  const auto json = core::parse_json(line, where);
  ADDER_CHECK(json.is_object(), "{}: must be a JSON object, got {}", where, json.type_name());
  const auto step = json.find("step");
  ADDER_CHECK(step != json.end() && step->is_number(), "{}: must have a number \"step\"", where);
  for (const auto& [name, value] : json.items()) {
    if (name == "step" || !(value.is_number() || value.is_null())) continue;
    auto [figure, is_new] = metrics.figures.try_emplace(name);
    if (is_new) metrics.names.push_back(name);
    figure->second.lines.push_back(metrics.steps.size());
    // Numbers that are not finite are written as null.
    figure->second.values.push_back(value.is_null() ? std::nan("") : value.get<double>());
  }
  metrics.steps.push_back(step->get<double>());
}

Metrics read_metrics(const fs::path& run) {
  const fs::path path = fs::is_directory(run) ? run / "metrics.jsonl" : run;
  Metrics metrics;
  metrics.path = path.string();
  const core::MappedFile file(path);
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = rest.find('\n');
    // A run that is going on may be writing its last line right now.
    if (end == rest.npos && !nlohmann::json::accept(rest)) break;
    const std::string_view line = rest.substr(0, end);
    if (line.find_first_not_of(" \t\r") != line.npos)
      add_line(metrics, line, fmt::format("{}:{}", path.string(), number));
    rest.remove_prefix(end == rest.npos ? rest.size() : end + 1);
  }
  ADDER_CHECK(!metrics.steps.empty(), "{}: has no metrics yet", path.string());
  return metrics;
}

const Figure& find_figure(const Metrics& metrics, const std::string& name) {
  if (metrics.has(name)) return metrics.figures.at(name);
  const auto nearest = core::nearest_name(name, metrics.names);
  fail("{}: has no '{}'; {}it has {}", metrics.path, name, nearest ? fmt::format("did you mean '{}'? ", *nearest) : "",
       metrics.names.empty() ? "no figures" : fmt::format("{}", fmt::join(metrics.names, ", ")));
}

// The tokens seen at every line. Lines of an evaluation do not tell them: they get what lies between their neighbours
// that do, in proportion to the steps.
std::vector<double> tokens_of_lines(const Metrics& metrics) {
  const Figure& known = find_figure(metrics, "tokens");
  std::map<double, double> tokens = {{0, 0}};  // by step
  for (size_t i = 0; i < known.lines.size(); ++i) tokens[metrics.steps[known.lines[i]]] = known.values[i];
  std::vector<double> filled;
  for (const double step : metrics.steps) {
    auto to = tokens.lower_bound(step);
    if (to == tokens.end()) --to;
    if (to->first == step || to == tokens.begin()) {
      filled.push_back(to->second);
      continue;
    }
    const auto from = std::prev(to);
    const double slope = (to->second - from->second) / (to->first - from->first);
    filled.push_back(from->second + slope * (step - from->first));
  }
  return filled;
}

// Means over `window` neighbours, fewer at the ends, so that a curve is not moved along x. Gaps stay.
std::vector<double> smoothed(const std::vector<double>& values, int64_t window) {
  const auto size = static_cast<int64_t>(values.size());
  std::vector<double> means = values;
  for (int64_t i = 0; i < size; ++i) {
    if (!std::isfinite(values[i])) continue;
    double sum = 0, count = 0;
    for (int64_t j = std::max<int64_t>(0, i - (window - 1) / 2); j < std::min(size, i + window / 2 + 1); ++j) {
      if (!std::isfinite(values[j])) continue;
      sum += values[j];
      ++count;
    }
    means[i] = sum / count;
  }
  return means;
}

Series make_series(const Metrics& metrics, const std::string& y, const PlotArguments& arguments) {
  const Figure& figure = find_figure(metrics, y);
  const std::vector<double> x = arguments.x == "tokens" ? tokens_of_lines(metrics) : metrics.steps;
  Series series{.y = figure.values};
  for (const size_t line : figure.lines) series.x.push_back(x[line]);
  // Figures of an evaluation are means already.
  if (arguments.smooth > 1 && !y.starts_with("eval_")) series.y = smoothed(series.y, arguments.smooth);
  return series;
}

std::string shown_name(std::string name) {
  if (name == "lr") return "learning rate";
  std::replace(name.begin(), name.end(), '_', ' ');
  return name;
}

// What the figures have in common: "loss" for loss and eval_loss.
std::string shown_name(const std::vector<std::string>& names) {
  if (names.size() == 1) return shown_name(names[0]);
  const auto last_word = [](const std::string& name) { return name.substr(name.rfind('_') + 1); };
  const std::string word = last_word(names[0]);
  const bool shared =
      std::all_of(names.begin(), names.end(), [&](const auto& name) { return last_word(name) == word; });
  return shared ? word : "";
}

std::vector<std::string> make_labels(const PlotArguments& arguments) {
  if (!arguments.labels.empty()) {
    ADDER_CHECK(arguments.labels.size() == arguments.runs.size(), "--label: must be given once for each run: {} for {}",
                arguments.labels.size(), arguments.runs.size());
    return arguments.labels;
  }
  std::vector<std::string> labels;
  for (const std::string& run : arguments.runs) {
    const fs::path path = fs::absolute(run).lexically_normal();
    const bool inside = path.filename().empty() || path.filename() == "metrics.jsonl";
    labels.push_back(inside ? path.parent_path().filename() : fs::is_directory(path) ? path.filename() : path.stem());
  }
  std::vector<std::string> sorted = labels;
  std::sort(sorted.begin(), sorted.end());
  const bool unique = std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end();
  return unique ? labels : arguments.runs;
}

void plot(const PlotArguments& arguments) {
  ADDER_CHECK(fs::path(arguments.out).extension() == ".png", "--out: must end in .png, got '{}'", arguments.out);
  const std::vector<std::string> labels = make_labels(arguments);
  std::vector<Metrics> runs;
  for (const std::string& run : arguments.runs) runs.push_back(read_metrics(run));

  std::vector<std::string> names = arguments.y;
  if (names.empty()) {
    for (const char* name : {"loss", "eval_loss"})
      if (std::any_of(runs.begin(), runs.end(), [&](const Metrics& run) { return run.has(name); }))
        names.push_back(name);
    if (names.empty()) names.push_back("loss");
  }

  ChartOptions options{.title = arguments.title,
                       .x_label = arguments.x,
                       .y_label = shown_name(names),
                       .log_x = arguments.log_x,
                       .log_y = arguments.log_y,
                       .y_min = arguments.y_min,
                       .y_max = arguments.y_max};
  if (options.title.empty() && runs.size() == 1) options.title = labels[0];
  std::vector<Series> series;
  for (size_t i = 0; i < runs.size(); ++i) {
    for (const std::string& name : names) {
      if (arguments.y.empty() && names.size() > 1 && !runs[i].has(name)) continue;
      series.push_back(make_series(runs[i], name, arguments));
      if (runs.size() == 1 && names.size() > 1) series.back().name = shown_name(name);
      if (runs.size() > 1) series.back().name = labels[i] + (names.size() > 1 ? ": " + shown_name(name) : "");
    }
  }
  draw_chart(arguments.out, series, options);
  fmt::print("wrote {}\n", arguments.out);
}

}  // namespace

void add_plot_command(CLI::App& app) {
  const auto arguments = std::make_shared<PlotArguments>();
  CLI::App* command = app.add_subcommand("plot", "Draw the metrics of runs as a PNG");
  command->add_option("runs", arguments->runs, "folders of runs, or files metrics.jsonl")->required()->expected(-1);
  command->add_option("--out", arguments->out, "PNG to write")->required();
  add_texts(*command, "--y", arguments->y,
            "what to draw: loss, eval_loss, eval_accuracy, eval_sequence_accuracy, lr, grad_norm, ...; may be "
            "repeated (default: loss and eval_loss)");
  command->add_option("--x", arguments->x, "along the chart: step or tokens")
      ->check(CLI::IsMember({"step", "tokens"}))
      ->capture_default_str();
  add_texts(*command, "--label", arguments->labels,
            "name of a run in the legend, once for each run (default: its folder)");
  command->add_option("--title", arguments->title, "title of the chart");
  add_whole_number(*command, "--smooth", arguments->smooth,
                   "mean over so many neighbouring lines; evaluations stay as they are", 1, 100000);
  command->add_flag("--log-x", arguments->log_x, "logarithmic x axis");
  command->add_flag("--log-y", arguments->log_y, "logarithmic y axis");
  add_real(*command, "--y-min", arguments->y_min, "low end of the y axis");
  add_real(*command, "--y-max", arguments->y_max, "high end of the y axis");
  command->callback([arguments] { plot(*arguments); });
}

}  // namespace adder::cli
