#include "cli/chart_axis.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "adder/core/check.h"

namespace adder::cli {
namespace {

// Beyond this the span of an axis could overflow.
constexpr double kLargest = 1e300;

std::string superscript(int64_t number) {
  constexpr std::string_view kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string text = number < 0 ? "⁻" : "";
  for (const char digit : std::to_string(std::abs(number))) text += kDigits[digit - '0'];
  return text;
}

// What follows a number that was divided by 10^exponent.
std::string unit(int64_t exponent) {
  constexpr std::string_view kUnits[] = {"", "k", "M", "B", "T"};
  if (exponent >= 0 && exponent <= 12 && exponent % 3 == 0) return std::string(kUnits[exponent / 3]);
  return "×10" + superscript(exponent);
}

// mantissa * 10^exponent: 0.02, 5, 20k, or 2×10⁻⁶ where `powers` asks for it.
std::string decade_label(int64_t mantissa, int64_t exponent, bool powers) {
  if (powers) return (mantissa == 1 ? "" : fmt::format("{}×", mantissa)) + "10" + superscript(exponent);
  if (exponent < 0) return fmt::format("{:.{}f}", static_cast<double>(mantissa) * std::pow(10.0, exponent), -exponent);
  const int64_t thousands = exponent / 3 * 3;
  return fmt::format("{:.0f}{}", static_cast<double>(mantissa) * std::pow(10.0, exponent - thousands), unit(thousands));
}

}  // namespace

bool Axis::shows(double value, bool log) {
  return std::abs(value) <= kLargest && (!log || value >= 1 / kLargest);
}

Axis::Axis(double least, double greatest, bool log, double margin, std::optional<double> low,
           std::optional<double> high)
    : log_(log), low_(low.value_or(least)), high_(high.value_or(greatest)) {
  for (const auto& end : {low, high}) {
    ADDER_CHECK(!end || shows(*end, log), "an axis cannot end at {}: it must be finite{}", end.value_or(0),
                log ? " and, being logarithmic, above zero" : "");
  }
  ADDER_CHECK(low_ <= high_ && !(low && high && low_ == high_),
              "an axis from {} to {} shows nothing: the values lie from {} to {}", low_, high_, least, greatest);
  if (log) {
    low_ = std::log10(low_);
    high_ = std::log10(high_);
  }
  const double size = std::max(std::abs(low_), std::abs(high_)), span = high_ - low_;
  if (span <= 1e-9 * size || span <= 1 / kLargest) {  // all values are one
    const double room = log ? 0.3 : size > 1 / kLargest ? 0.1 * size : 1;
    if (!low) low_ -= room;
    if (!high) high_ += room;
    return;
  }
  if (!log && !low && low_ >= 0 && low_ <= 0.1 * span) {
    low_ = 0;
  } else if (!low) {
    low_ -= margin * span;
  }
  if (!high) high_ += margin * span;
}

double Axis::place(double value) const {
  return ((log_ ? std::log10(value) : value) - low_) / (high_ - low_);
}

std::vector<Tick> Axis::linear_ticks(int64_t wished) const {
  const double low = log_ ? std::pow(10, low_) : low_, high = log_ ? std::pow(10, high_) : high_;
  // The nearest step by its ratio; one of them for every third of the span leaves no axis without a tick.
  const double wanted = (high - low) / static_cast<double>(std::max<int64_t>(wished, 3));
  auto exponent = static_cast<int64_t>(std::floor(std::log10(wanted)));
  const double ratio = wanted / std::pow(10.0, exponent);
  const int64_t mantissa = ratio < std::sqrt(2) || ratio > std::sqrt(50) ? 1 : ratio < std::sqrt(10) ? 2 : 5;
  if (ratio > std::sqrt(50)) ++exponent;
  const double step = static_cast<double>(mantissa) * std::pow(10.0, exponent);
  const auto first = static_cast<int64_t>(std::ceil(low / step - 1e-6));
  const auto last = static_cast<int64_t>(std::floor(high / step + 1e-6));

  // All labels share a unit, so that they compare at a glance.
  const double largest = static_cast<double>(std::max(std::abs(first), std::abs(last))) * step;
  const auto magnitude = largest > 0 ? static_cast<int64_t>(std::floor(std::log10(largest) + 1e-9)) : 0;
  const bool plain = magnitude >= -3 && magnitude < 15;
  const int64_t shared = !plain ? magnitude : magnitude < 4 ? 0 : magnitude / 3 * 3;
  std::vector<Tick> ticks;
  for (int64_t i = first; i <= last; ++i) {
    const double value = static_cast<double>(i * mantissa) * std::pow(10.0, exponent - shared);
    const double shown = static_cast<double>(i) * step;
    std::string label =
        i == 0 ? "0" : fmt::format("{:.{}f}{}", std::abs(value), std::max<int64_t>(0, shared - exponent), unit(shared));
    ticks.push_back({place(shown), (i < 0 ? "−" : "") + label});
  }
  return ticks;
}

std::vector<Tick> Axis::ticks(int64_t wished) const {
  if (!log_) return linear_ticks(wished);
  const auto first = static_cast<int64_t>(std::ceil(low_ - 1e-9));
  const auto last = static_cast<int64_t>(std::floor(high_ + 1e-9));
  const bool few = last - first + 1 < 3;
  const bool powers = first < -3 || last >= 15;
  const int64_t stride = few ? 1 : (last - first) / std::max<int64_t>(wished, 1) + 1;
  std::vector<Tick> ticks;
  for (int64_t decade = first - 1; decade <= last; ++decade) {
    if (decade % stride != 0) continue;
    for (const int64_t mantissa : {1, 2, 5}) {
      if (mantissa > 1 && !few) break;
      const double at = static_cast<double>(decade) + std::log10(mantissa);
      if (at < low_ - 1e-9 || at > high_ + 1e-9) continue;
      ticks.push_back({(at - low_) / (high_ - low_), decade_label(mantissa, decade, powers)});
    }
  }
  return few && ticks.size() < 3 ? linear_ticks(wished) : ticks;
}

std::vector<double> Axis::minor_ticks() const {
  std::vector<double> places;
  if (!log_ || high_ - low_ > 8) return places;
  for (auto decade = static_cast<int64_t>(std::floor(low_)); static_cast<double>(decade) < high_; ++decade) {
    for (int mantissa = 2; mantissa < 10; ++mantissa) {
      const double at = static_cast<double>(decade) + std::log10(mantissa);
      if (at > low_ && at < high_) places.push_back((at - low_) / (high_ - low_));
    }
  }
  return places;
}

}  // namespace adder::cli
