#include "adder/core/nearest_name.h"

#include <algorithm>

namespace adder::core {
namespace {

std::string lower_case(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return lower;
}

// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before_last(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    before_last.swap(last);
    last.swap(row);
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        row[j] = std::min(row[j], before_last[j - 2] + 1);
    }
  }
  return row[b.size()];
}

}  // namespace

std::optional<std::string> nearest_name(std::string_view wrong, const std::vector<std::string>& candidates) {
  const std::string from = lower_case(wrong);
  std::optional<std::string> nearest, completion;
  size_t smallest = 0, completions = 0;
  for (const std::string& candidate : candidates) {
    const std::string to = lower_case(candidate);
    if (from.size() >= 3 && to.starts_with(from) && completions++ == 0) completion = candidate;
    const size_t longer = std::max(from.size(), to.size());
    const size_t limit = std::max<size_t>(1, longer / 3);
    // The distance is no smaller than the difference of the lengths.
    if (longer - std::min(from.size(), to.size()) > limit) continue;
    const size_t distance = edit_distance(from, to);
    const bool near = distance <= limit && (distance < longer || longer == 0);
    if (near && (!nearest || distance < smallest)) {
      nearest = candidate;
      smallest = distance;
    }
  }
  if (!nearest && completions == 1) return completion;
  return nearest;
}

}  // namespace adder::core
