#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace adder::cli {

struct Tick {
  double place;  // on the axis, 0 at its low end, 1 at its high end
  std::string label;
};

// One axis of a chart: which values it spans, where a value lies on it, and its ticks.
class Axis {
 public:
  // Spans least..greatest (which it shows), widened by the share `margin` of the span at both ends, except at an end
  // that `low` or `high` fixes. A linear axis whose least value is near zero begins at zero. Throws adder::Error where
  // the fixed ends leave nothing of the values.
  Axis(double least, double greatest, bool log, double margin, std::optional<double> low, std::optional<double> high);

  // Whether a value has a place on such an axis: it is finite (1e300 at most, so that spans are too) and, for a
  // logarithmic one, above zero.
  static bool shows(double value, bool log);

  double place(double value) const;
  // About `wished` ticks: multiples of 1, 2 or 5 times a power of ten; powers of ten on a long logarithmic axis.
  std::vector<Tick> ticks(int64_t wished) const;
  // Places between the powers of ten of a logarithmic axis, for a finer grid; none on an axis that is linear or long.
  std::vector<double> minor_ticks() const;

 private:
  std::vector<Tick> linear_ticks(int64_t wished) const;

  bool log_;
  double low_, high_;  // their decimal logarithms on a logarithmic axis
};

}  // namespace adder::cli
