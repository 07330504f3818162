#include "cli/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>

#include "cli/chart_axis.h"
#include "tests/cli/picture.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::cli {
namespace {

using data::TemporaryFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<std::string> labels(const Axis& axis, int64_t wished) {
  std::vector<std::string> texts;
  for (const Tick& tick : axis.ticks(wished)) texts.push_back(tick.label);
  return texts;
}

Axis linear(double least, double greatest) {
  return Axis(least, greatest, false, 0, {}, {});
}

Axis logarithmic(double least, double greatest) {
  return Axis(least, greatest, true, 0, {}, {});
}

// Longest run of columns, between the first and the last one found, in which there is none.
int64_t widest_hole(const std::set<int64_t>& columns) {
  int64_t widest = 0;
  for (auto it = columns.begin(); it != columns.end() && std::next(it) != columns.end(); ++it)
    widest = std::max(widest, *std::next(it) - *it - 1);
  return widest;
}

TEST(Axis, TicksAreRoundAndShareAUnit) {
  EXPECT_THAT(labels(linear(0, 1), 5), ElementsAre("0", "0.2", "0.4", "0.6", "0.8", "1.0"));
  EXPECT_THAT(labels(linear(-3, 4), 7), ElementsAre("−3", "−2", "−1", "0", "1", "2", "3", "4"));
  EXPECT_THAT(labels(linear(0, 4000), 4), ElementsAre("0", "1000", "2000", "3000", "4000"));
  EXPECT_THAT(labels(linear(0, 2e6), 4), ElementsAre("0", "0.5M", "1.0M", "1.5M", "2.0M"));
  EXPECT_THAT(labels(linear(0, 4e-6), 4), ElementsAre("0", "1×10⁻⁶", "2×10⁻⁶", "3×10⁻⁶", "4×10⁻⁶"));
  EXPECT_THAT(labels(logarithmic(0.01, 1e4), 7), ElementsAre("0.01", "0.1", "1", "10", "100", "1k", "10k"));
  EXPECT_THAT(labels(logarithmic(1e-6, 1e-3), 7), ElementsAre("10⁻⁶", "10⁻⁵", "10⁻⁴", "10⁻³"));
  EXPECT_THAT(labels(logarithmic(3, 70), 7), ElementsAre("5", "10", "20", "50"));
  EXPECT_THAT(labels(logarithmic(2, 3), 3), ElementsAre("2.0", "2.5", "3.0"));
  EXPECT_THAT(labels(logarithmic(1, 1e12), 5), ElementsAre("1", "1k", "1M", "1B", "1T"));
}

TEST(Axis, HasTicksInsideForAnyRange) {
  const double values[] = {-1e300, -3.5, -1e-300, 0, 5e-324, 1e-9, 1, 1 + 1e-15, 123456789, 123456790, 3.4e38, 1e300};
  for (const double least : values) {
    for (const double greatest : values) {
      if (least > greatest) continue;
      for (const bool log : {false, true}) {
        if (log && !Axis::shows(least, true)) continue;
        const Axis axis(least, greatest, log, 0.04, {}, {});
        EXPECT_GE(axis.place(least), 0);
        EXPECT_LE(axis.place(greatest), 1);
        for (const int64_t wished : {1, 3, 8}) {
          const auto ticks = axis.ticks(wished);
          EXPECT_GE(ticks.size(), 1) << least << " " << greatest << " " << log;
          EXPECT_LE(ticks.size(), 14) << least << " " << greatest << " " << log;
          for (const Tick& tick : ticks) {
            EXPECT_GE(tick.place, -1e-6) << tick.label;
            EXPECT_LE(tick.place, 1 + 1e-6) << tick.label;
          }
        }
      }
    }
  }
}

TEST(Axis, WidensItsFreeEnds) {
  const Axis free(10, 20, false, 0.1, {}, {});
  EXPECT_NEAR(free.place(9), 0, 1e-12);
  EXPECT_NEAR(free.place(21), 1, 1e-12);
  const Axis fixed(10, 20, false, 0.1, 12, 18);
  EXPECT_NEAR(fixed.place(12), 0, 1e-12);
  EXPECT_NEAR(fixed.place(18), 1, 1e-12);
  EXPECT_EQ(Axis(0.5, 20, false, 0.1, {}, {}).place(0), 0);
  EXPECT_NEAR(Axis(7, 7, false, 0.1, {}, {}).place(7), 0.5, 1e-12);
  EXPECT_NEAR(Axis(1, 100, true, 0, {}, {}).place(10), 0.5, 1e-12);
}

TEST(Axis, RefusesEndsThatShowNothing) {
  EXPECT_EQ(error_of([] { Axis(1, 2, false, 0, 3, {}); }),
            "an axis from 3 to 2 shows nothing: the values lie from 1 to 2");
  EXPECT_THAT(error_of([] { Axis(1, 2, false, 0, 2, 2); }), HasSubstr("shows nothing"));
  EXPECT_THAT(error_of([] { Axis(1, 2, true, 0, 0, {}); }), HasSubstr("cannot end at 0"));
  EXPECT_THAT(error_of([] { Axis(1, 2, false, 0, {}, kInfinity); }), HasSubstr("cannot end at inf"));
}

TEST(Chart, WritesAPngWithItsLines) {
  const TemporaryFolder folder;
  const auto path = folder / "chart.png";
  draw_chart(path, {{"rising", {0, 1, 2}, {0, 1, 3}}, {"falling", {0, 1, 2}, {3, 1, 0}}},
             {.title = "Title", .x_label = "x", .y_label = "y"});
  std::ifstream in(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(bytes.substr(0, 8), "\x89PNG\r\n\x1a\n");
  const Picture picture(path);
  EXPECT_EQ(picture.width(), 1800);
  EXPECT_EQ(picture.height(), 1080);
  EXPECT_EQ(picture.at(0, 0), 0xFFFFFF);
  EXPECT_GT(picture.columns(kBlue).size(), 1200);
  EXPECT_GT(picture.columns(kOrange).size(), 1200);
  EXPECT_THAT(picture.columns(kGreen), IsEmpty());
  // No temporary is left beside it.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1);
}

TEST(Chart, LeavesGapsWhereValuesAreNotFinite) {
  const TemporaryFolder folder;
  const auto path = folder / "chart.png";
  for (const double missing : {kNan, kInfinity, -kInfinity}) {
    draw_chart(path, {{"", {0, 1, 2, 3, 4}, {1, 1, missing, 1, 1}}}, {});
    EXPECT_GT(widest_hole(Picture(path).columns(kBlue)), 600);
  }
  draw_chart(path, {{"", {0, 1, 2, 3, 4}, {1, 1, 1, 1, 1}}}, {});
  EXPECT_EQ(widest_hole(Picture(path).columns(kBlue)), 0);
  draw_chart(path, {{"", {0, 1, 2, 3, 4}, {1, 1, 0, 1, 1}}}, {.log_y = true});
  EXPECT_GT(widest_hole(Picture(path).columns(kBlue)), 600);
}

TEST(Chart, ShowsASinglePoint) {
  const TemporaryFolder folder;
  draw_chart(folder / "chart.png", {{"", {5}, {0}}}, {});
  EXPECT_THAT(Picture(folder / "chart.png").columns(kBlue), SizeIs(testing::AllOf(testing::Ge(8), testing::Le(20))));
}

TEST(Chart, ThinningKeepsTheOutliersOfALongLine) {
  const TemporaryFolder folder;
  Series line;
  for (int64_t i = 0; i < 300000; ++i) {
    line.x.push_back(static_cast<double>(i));
    line.y.push_back(i == 123456 ? 100 : i == 200001 ? -100 : 0);
  }
  draw_chart(folder / "chart.png", {line}, {});
  const Picture picture(folder / "chart.png");
  int64_t top = picture.height(), bottom = 0;
  for (int64_t y = 0; y < picture.height(); ++y) {
    for (int64_t x = 0; x < picture.width(); ++x) {
      if (picture.at(x, y) != kBlue) continue;
      top = std::min(top, y);
      bottom = std::max(bottom, y);
    }
  }
  EXPECT_GT(bottom - top, 850);
}

TEST(Chart, ClipsToAGivenRange) {
  const TemporaryFolder folder;
  const auto path = folder / "chart.png";
  // The spike to 1e38 leaves the picture at its top; the rest keeps its scale.
  draw_chart(path, {{"", {0, 1, 2, 3, 4}, {1, 1, 1e38, 1, 1}}}, {.y_min = 0.0, .y_max = 2.0});
  const Picture picture(path);
  EXPECT_GT(widest_hole(picture.columns(kBlue)), 0);
  EXPECT_GT(picture.columns(kBlue).size(), 800);
}

TEST(Chart, DrawsManyLinesAndLongNames) {
  const TemporaryFolder folder;
  std::vector<Series> lines;
  for (int i = 0; i < 16; ++i) lines.push_back({fmt::format("line {}", i), {0, 1}, {double(i), double(i)}});
  lines[3].name = std::string(500, 'w');
  lines[4].name.clear();
  draw_chart(folder / "chart.png", lines, {.title = std::string(300, 'm') + "é"});
  const Picture picture(folder / "chart.png");
  for (int64_t y = 0; y < picture.height(); ++y) ASSERT_EQ(picture.at(picture.width() - 5, y), 0xFFFFFF);
}

TEST(Chart, RefusesWhatItCannotDraw) {
  const TemporaryFolder folder;
  const auto path = folder / "chart.png";
  const auto error = [&](const std::vector<Series>& lines, const ChartOptions& options = {}) {
    return error_of([&] { draw_chart(path, lines, options); });
  };
  EXPECT_EQ(error({}), "there is nothing to draw: no points");
  EXPECT_EQ(error({{"empty", {}, {}}}), "there is nothing to draw: no points");
  EXPECT_EQ(error({{"", {0, kNan}, {kNan, 1}}}), "there is nothing to draw: none of 2 points is finite");
  EXPECT_EQ(error({{"", {0, 1}, {-1, 0}}}, {.log_y = true}),
            "there is nothing to draw: none of 2 points is finite and above zero on the logarithmic axis");
  EXPECT_EQ(error({{"short", {0, 1}, {1}}}), "the line 'short' must have as many x as y, got 2 and 1");
  const std::vector<Series> line = {{"", {0, 1}, {0, 1}}};
  EXPECT_EQ(error(line, {.width = 0}),
            "a chart must be 1 to 16384 pixels wide and high, got 0 x 540 points of 2 pixels");
  EXPECT_THAT(error(line, {.height = int64_t{1} << 62}), HasSubstr("16384"));
  EXPECT_THAT(error(line, {.pixels_per_point = 0}), HasSubstr("of 0 pixels"));
  EXPECT_THAT(error(line, {.width = 100}), HasSubstr("no room"));
  EXPECT_THAT(error(std::vector<Series>(400, {"name", {0}, {0}})), HasSubstr("no room for 400 lines"));
  EXPECT_THAT(error(line, {.title = "\xff"}), HasSubstr("UTF-8"));
  EXPECT_THAT(error_of([&] { draw_chart(folder / "none" / "chart.png", line, {}); }), HasSubstr("cannot create"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace adder::cli
