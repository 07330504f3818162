#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace adder::core {

// The candidate that `wrong` was probably meant to be: the one at the smallest edit distance (a swap of neighbours is
// one edit, upper and lower case are alike), if that is at most a third of the longer name, or else the only one that
// `wrong` (3 letters or more) begins.
std::optional<std::string> nearest_name(std::string_view wrong, const std::vector<std::string>& candidates);

}  // namespace adder::core
