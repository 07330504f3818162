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

// A bar would end the cell, also within a code span.
std::string cell(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

void write_markdown(const FieldGroup& group, std::string& text) {
  if (!group.path.empty()) text += fmt::format("{}`[{}]`: {}\n", text.empty() ? "" : "\n", group.path, group.help);
  if (!group.fields.empty()) {
    text += fmt::format("{}| key | value | default | meaning |\n|---|---|---|---|\n", text.empty() ? "" : "\n");
    for (const Field& field : group.fields)
      text += fmt::format("| `{}` | {} | `{}` | {} |\n", field.path, cell(field_rule(field)),
                          cell(format_value(field.value)), cell(field.help));
  }
  for (const FieldGroup& below : group.groups) write_markdown(below, text);
}

}  // namespace

std::string help_table(const VisitFunction& visit) {
  const FieldGroup root = collect_fields(visit);
  std::string text;
  write_help(root, longest_path(root), text);
  return text;
}

std::string markdown_table(const VisitFunction& visit) {
  std::string text;
  write_markdown(collect_fields(visit), text);
  return text;
}

}  // namespace adder::core::options_io
