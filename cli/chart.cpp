#include "cli/chart.h"

#include <cairo.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numbers>
#include <string_view>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "cli/chart_axis.h"

namespace adder::cli {
namespace {

struct Color {
  double red, green, blue;
};
constexpr Color rgb(uint32_t hex) {
  return {(hex >> 16 & 255) / 255.0, (hex >> 8 & 255) / 255.0, (hex & 255) / 255.0};
}

// Okabe and Ito's palette, which colour-blind readers tell apart; without its yellow, too pale for a line on white.
constexpr Color kPalette[] = {rgb(0x0072B2), rgb(0xD55E00), rgb(0x009E73), rgb(0xCC79A7),
                              rgb(0xE69F00), rgb(0x56B4E9), rgb(0x4D4D4D)};
constexpr size_t kColors = std::size(kPalette);
constexpr Color kInk = rgb(0x222222), kSoftInk = rgb(0x555555);
constexpr Color kGrid = rgb(0xE3E3E3), kMinorGrid = rgb(0xF1F1F1), kFrame = rgb(0x888888);

// In points.
constexpr double kTitleSize = 18, kLabelSize = 14, kTickSize = 13;
constexpr double kEdge = 18;  // around everything
constexpr double kLegendRow = 22, kLegendKey = 24, kLegendGap = 22;
constexpr double kLineWidth = 2.4, kDotRadius = 3.6;
constexpr size_t kMostDots = 25;  // a line of so few points shows each of them

struct Extent {
  double least = std::numeric_limits<double>::infinity();
  double greatest = -least;

  void add(double value) {
    least = std::min(least, value);
    greatest = std::max(greatest, value);
  }
};

struct Point {
  double x, y;
};

struct LegendEntry {
  std::string text;
  size_t series;
  double x;
  int64_t row;
};

enum class Anchor { kLeft, kCenter, kRight };

class Chart {
 public:
  Chart(const std::vector<Series>& series, const ChartOptions& options)
      : series_(series),
        options_(options),
        x_axis_(axis_of(&Series::x, options.log_x, 0, {}, {})),
        y_axis_(axis_of(&Series::y, options.log_y, 0.04, options.y_min, options.y_max)),
        surface_(
            cairo_image_surface_create(CAIRO_FORMAT_RGB24, static_cast<int>(options.width * options.pixels_per_point),
                                       static_cast<int>(options.height * options.pixels_per_point)),
            cairo_surface_destroy),
        context_(cairo_create(surface_.get()), cairo_destroy),
        cr_(context_.get()) {
    cairo_scale(cr_, static_cast<double>(options.pixels_per_point), static_cast<double>(options.pixels_per_point));
    const std::unique_ptr<cairo_font_options_t, decltype(&cairo_font_options_destroy)> fonts(
        cairo_font_options_create(), cairo_font_options_destroy);
    cairo_font_options_set_antialias(fonts.get(), CAIRO_ANTIALIAS_GRAY);
    cairo_font_options_set_hint_style(fonts.get(), CAIRO_HINT_STYLE_NONE);
    cairo_font_options_set_hint_metrics(fonts.get(), CAIRO_HINT_METRICS_OFF);
    cairo_set_font_options(cr_, fonts.get());
    cairo_set_line_join(cr_, CAIRO_LINE_JOIN_ROUND);
  }

  std::string png() {
    lay_out();
    set_color(rgb(0xFFFFFF));
    cairo_paint(cr_);
    draw_texts();
    draw_grid();
    for (size_t i = 0; i < series_.size(); ++i) draw_series(i);

    std::string bytes;
    const auto append = [](void* to, const unsigned char* data, unsigned int size) noexcept {
      static_cast<std::string*>(to)->append(reinterpret_cast<const char*>(data), size);
      return CAIRO_STATUS_SUCCESS;
    };
    cairo_status_t status = cairo_status(cr_);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_write_to_png_stream(surface_.get(), append, &bytes);
    ADDER_CHECK(status == CAIRO_STATUS_SUCCESS, "cannot draw the chart: {}", cairo_status_to_string(status));
    return bytes;
  }

 private:
  bool shows(const Series& line, size_t i) const {
    return Axis::shows(line.x[i], options_.log_x) && Axis::shows(line.y[i], options_.log_y);
  }

  Axis axis_of(std::vector<double> Series::*values, bool log, double margin, std::optional<double> low,
               std::optional<double> high) const {
    Extent extent;
    size_t points = 0;
    for (const Series& line : series_) {
      ADDER_CHECK(line.x.size() == line.y.size(), "the line '{}' must have as many x as y, got {} and {}", line.name,
                  line.x.size(), line.y.size());
      points += line.x.size();
      for (size_t i = 0; i < line.x.size(); ++i)
        if (shows(line, i)) extent.add((line.*values)[i]);
    }
    ADDER_CHECK(points > 0, "there is nothing to draw: no points");
    ADDER_CHECK(extent.least <= extent.greatest, "there is nothing to draw: none of {} points is finite{}", points,
                options_.log_x || options_.log_y ? " and above zero on the logarithmic axis" : "");
    return Axis(extent.least, extent.greatest, log, margin, low, high);
  }

  void set_color(Color color) { cairo_set_source_rgb(cr_, color.red, color.green, color.blue); }

  void set_font(double size, bool bold = false) {
    cairo_select_font_face(cr_, "DejaVu Sans", CAIRO_FONT_SLANT_NORMAL,
                           bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cr_, size);
  }

  double text_width(const std::string& text) {
    cairo_text_extents_t extents;
    cairo_text_extents(cr_, text.c_str(), &extents);
    return extents.x_advance;
  }

  // The text, or as much of its beginning as fits.
  std::string fitted(std::string text, double width) {
    if (text_width(text) <= width) return text;
    const auto inside_character = [&] { return (static_cast<unsigned char>(text.back()) & 0xC0) == 0x80; };
    while (!text.empty() && text_width(text + "…") > width) {
      while (inside_character() && text.size() > 1) text.pop_back();
      text.pop_back();
    }
    return text + "…";
  }

  void draw_text(const std::string& text, double x, double baseline, Anchor anchor = Anchor::kLeft) {
    const double share = anchor == Anchor::kLeft ? 0 : anchor == Anchor::kCenter ? 0.5 : 1;
    cairo_move_to(cr_, x - share * text_width(text), baseline);
    cairo_show_text(cr_, text.c_str());
  }

  // Where everything stands. Title and legend span the whole width, above the lines, which they so never cover.
  void lay_out() {
    const auto width = static_cast<double>(options_.width), height = static_cast<double>(options_.height);
    set_font(kLabelSize);
    double x = kEdge;
    int64_t rows = 0;
    for (size_t i = 0; i < series_.size(); ++i) {
      if (series_[i].name.empty()) continue;
      const std::string text = fitted(series_[i].name, width - 2 * kEdge - kLegendKey);
      const double entry = kLegendKey + text_width(text);
      if (rows == 0 || x + entry > width - kEdge) {
        x = kEdge;
        ++rows;
      }
      legend_.push_back({text, i, x, rows - 1});
      x += entry + kLegendGap;
    }

    legend_top_ = kEdge + (options_.title.empty() ? 0 : 30);
    top_ = legend_top_ + static_cast<double>(rows) * kLegendRow + (rows > 0 ? 12 : 2);
    bottom_ = height - kEdge - (options_.x_label.empty() ? 0 : 24) - kTickSize - 6;
    ADDER_CHECK(bottom_ - top_ >= 80, "a chart of {} x {} has no room for {} lines and their legend", options_.width,
                options_.height, series_.size());
    y_ticks_ = y_axis_.ticks(static_cast<int64_t>((bottom_ - top_) / 58));

    set_font(kTickSize);
    double widest = 0;
    for (const Tick& tick : y_ticks_) widest = std::max(widest, text_width(tick.label));
    left_ = kEdge + (options_.y_label.empty() ? 0 : 24) + widest + 10;
    right_ = width - kEdge - 8;
    ADDER_CHECK(right_ - left_ >= 80, "a chart of {} x {} has no room for its lines", options_.width, options_.height);
    x_ticks_ = x_axis_.ticks(static_cast<int64_t>((right_ - left_) / 110));
    const double last_label = text_width(x_ticks_.back().label);
    right_ = std::min(right_, width - kEdge / 2 - last_label / 2);
  }

  double at_x(double place) const { return left_ + place * (right_ - left_); }
  double at_y(double place) const { return bottom_ - place * (bottom_ - top_); }

  void draw_texts() {
    const auto width = static_cast<double>(options_.width), height = static_cast<double>(options_.height);
    set_color(kInk);
    if (!options_.title.empty()) {
      set_font(kTitleSize, true);
      draw_text(fitted(options_.title, width - 2 * kEdge), kEdge, kEdge + kTitleSize - 2);
    }
    set_font(kLabelSize);
    for (const LegendEntry& entry : legend_) {
      const double middle = legend_top_ + (static_cast<double>(entry.row) + 0.5) * kLegendRow;
      set_color(kInk);
      draw_text(entry.text, entry.x + kLegendKey, middle + kLabelSize * 0.36);
      set_line_style(entry.series);
      cairo_set_line_width(cr_, kLineWidth + 0.8);
      cairo_move_to(cr_, entry.x + 1, middle);
      cairo_line_to(cr_, entry.x + kLegendKey - 7, middle);
      cairo_stroke(cr_);
    }
    cairo_set_dash(cr_, nullptr, 0, 0);

    set_color(kSoftInk);
    draw_text(options_.x_label, (left_ + right_) / 2, height - kEdge, Anchor::kCenter);
    cairo_save(cr_);
    cairo_translate(cr_, kEdge + kLabelSize * 0.75, (top_ + bottom_) / 2);
    cairo_rotate(cr_, -std::numbers::pi / 2);
    draw_text(options_.y_label, 0, 0, Anchor::kCenter);
    cairo_restore(cr_);

    set_font(kTickSize);
    for (const Tick& tick : x_ticks_) draw_text(tick.label, at_x(tick.place), bottom_ + kTickSize + 6, Anchor::kCenter);
    for (const Tick& tick : y_ticks_)
      draw_text(tick.label, left_ - 8, at_y(tick.place) + kTickSize * 0.36, Anchor::kRight);
  }

  void draw_segment(double from_x, double from_y, double to_x, double to_y) {
    cairo_move_to(cr_, from_x, from_y);
    cairo_line_to(cr_, to_x, to_y);
    cairo_stroke(cr_);
  }

  void draw_grid() {
    cairo_set_line_width(cr_, 1);
    set_color(kMinorGrid);
    for (const double place : x_axis_.minor_ticks()) draw_segment(at_x(place), top_, at_x(place), bottom_);
    for (const double place : y_axis_.minor_ticks()) draw_segment(left_, at_y(place), right_, at_y(place));
    set_color(kGrid);
    for (const Tick& tick : x_ticks_) draw_segment(at_x(tick.place), top_, at_x(tick.place), bottom_);
    for (const Tick& tick : y_ticks_) draw_segment(left_, at_y(tick.place), right_, at_y(tick.place));
    set_color(kFrame);
    draw_segment(left_, bottom_, right_, bottom_);
  }

  // The colours come round again with another dash.
  void set_line_style(size_t index) {
    constexpr double kDashes[][2] = {{7, 4}, {2, 3}};
    set_color(kPalette[index % kColors]);
    const size_t round = index / kColors;
    cairo_set_dash(cr_, kDashes[(round + 1) % 2], round == 0 ? 0 : 2, 0);
    cairo_set_line_cap(cr_, round == 0 ? CAIRO_LINE_CAP_ROUND : CAIRO_LINE_CAP_BUTT);
  }

  // A run of points without a gap. Of the points in one column of pixels only the first, the lowest, the highest and
  // the last are kept: they look the same, and a line of a million points is drawn at once.
  std::vector<Point> thinned(const std::vector<Point>& points) const {
    std::vector<Point> kept;
    const auto column = [&](size_t i) {
      return std::floor(points[i].x * static_cast<double>(options_.pixels_per_point));
    };
    for (size_t begin = 0, end; begin < points.size(); begin = end) {
      size_t low = begin, high = begin;
      for (end = begin; end < points.size() && column(end) == column(begin); ++end) {
        if (points[end].y < points[low].y) low = end;
        if (points[end].y > points[high].y) high = end;
      }
      size_t chosen[] = {begin, std::min(low, high), std::max(low, high), end - 1};
      for (size_t i = 0; i < 4; ++i)
        if (i == 0 || chosen[i] != chosen[i - 1]) kept.push_back(points[chosen[i]]);
    }
    return kept;
  }

  void draw_dot(Point point) {
    cairo_new_sub_path(cr_);
    cairo_arc(cr_, point.x, point.y, kDotRadius, 0, 2 * std::numbers::pi);
    cairo_fill(cr_);
  }

  void draw_series(size_t index) {
    const Series& line = series_[index];
    cairo_save(cr_);
    // A little more than the area of the axes, so that lines along its border keep their width.
    cairo_rectangle(cr_, left_ - 4, top_ - 4, right_ - left_ + 8, bottom_ - top_ + 8);
    cairo_clip(cr_);
    set_line_style(index);
    cairo_set_line_width(cr_, kLineWidth);
    size_t shown = 0;
    for (size_t i = 0; i < line.x.size(); ++i) shown += shows(line, i);
    std::vector<Point> run;
    for (size_t i = 0; i <= line.x.size(); ++i) {
      if (i < line.x.size() && shows(line, i)) {
        // Far outside, cairo's fixed-point coordinates would overflow.
        const double height = std::clamp(y_axis_.place(line.y[i]), -1000.0, 1000.0);
        run.push_back({at_x(x_axis_.place(line.x[i])), at_y(height)});
        continue;
      }
      for (const Point point : thinned(run)) cairo_line_to(cr_, point.x, point.y);
      cairo_stroke(cr_);
      if (run.size() == 1 || shown <= kMostDots) std::for_each(run.begin(), run.end(), [&](Point p) { draw_dot(p); });
      run.clear();
    }
    cairo_restore(cr_);
  }

  const std::vector<Series>& series_;
  const ChartOptions& options_;
  Axis x_axis_, y_axis_;
  std::unique_ptr<cairo_surface_t, decltype(&cairo_surface_destroy)> surface_;
  std::unique_ptr<cairo_t, decltype(&cairo_destroy)> context_;
  cairo_t* cr_;
  std::vector<LegendEntry> legend_;
  std::vector<Tick> x_ticks_, y_ticks_;
  double legend_top_ = 0, top_ = 0, bottom_ = 0, left_ = 0, right_ = 0;
};

}  // namespace

void draw_chart(const std::filesystem::path& path, const std::vector<Series>& series, const ChartOptions& options) {
  const auto fits = [](int64_t points, int64_t scale) { return points >= 1 && points <= 16384 / scale; };
  ADDER_CHECK(options.pixels_per_point >= 1 && fits(options.width, options.pixels_per_point) &&
                  fits(options.height, options.pixels_per_point),
              "a chart must be 1 to 16384 pixels wide and high, got {} x {} points of {} pixels", options.width,
              options.height, options.pixels_per_point);
  core::write_file_atomically(path, Chart(series, options).png());
}

}  // namespace adder::cli
