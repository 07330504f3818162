#include <fmt/format.h>

#include <algorithm>

#include "adder/core/options_io.h"

namespace adder::core::options_io {
namespace {

size_t longest_path(const FieldGroup& group) {
  size_t longest = 0;
  for (const Field& field : group.fields) longest = std::max(longest, field.path.size());
  for (const FieldGroup& below : group.groups) longest = std::max(longest, longest_path(below));
  return longest;
}

void write_help(const FieldGroup& group, size_t width, std::string& text) {
  if (!group.path.empty()) text += fmt::format("{}[{}] {}\n", text.empty() ? "" : "\n", group.path, group.help);
  for (const Field& field : group.fields)
    text += fmt::format("{:<{}}  {}, default {}: {}\n", field.path, width, field_rule(field), format_value(field.value),
                        field.help);
  for (const FieldGroup& below : group.groups) write_help(below, width, text);
}

}  // namespace

std::string help_table(const VisitFunction& visit) {
  const FieldGroup root = collect_fields(visit);
  std::string text;
  write_help(root, longest_path(root), text);
  return text;
}

}  // namespace adder::core::options_io
