#include "adder/core/options_io.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/nearest_name.h"
#include "adder/core/options_source.h"

namespace adder::core::options_io {
namespace {

enum class Infinities { kNumbers, kTexts };

// "a real > 0", "an integer"; "true or false", "constant or cosine".
std::string rule_with_article(const Field& field) {
  std::string rule = field_rule(field);
  if (!field.choices.empty() || std::holds_alternative<bool>(field.value)) return rule;
  return (std::holds_alternative<int64_t>(field.value) ? "an " : "a ") + rule;
}

[[noreturn]] void fail_value(const Field& field, const SourceNode& node, std::string_view got) {
  std::string hint;
  if (const auto* text = std::get_if<std::string>(&node.value))
    if (const auto nearest = nearest_name(*text, field.choices))
      hint = fmt::format("; did you mean {}?", quote(*nearest));
  fail("{}{} must be {}, got {}{}", node.where, field.path, rule_with_article(field), got, hint);
}

std::string read_text(const Field& field, const SourceNode& node) {
  const auto* text = std::get_if<std::string>(&node.value);
  if (!text) fail_value(field, node, describe(node));
  ADDER_CHECK(is_utf8(*text), "{}{} must be UTF-8 text, got {}", node.where, field.path, quote_for_message(*text));
  return *text;
}

std::optional<FieldValue> convert(const Field& field, const SourceNode& node, Infinities infinities) {
  if (std::holds_alternative<std::string>(field.value)) return read_text(field, node);
  if (std::holds_alternative<std::vector<std::string>>(field.value)) {
    const auto* items = std::get_if<std::vector<SourceNode>>(&node.value);
    if (!items) return std::nullopt;
    std::vector<std::string> texts;
    for (const SourceNode& item : *items) {
      if (!std::holds_alternative<std::string>(item.value))
        fail_value(field, item, fmt::format("{} at index {}", describe(item), texts.size()));
      texts.push_back(read_text(field, item));
    }
    return texts;
  }
  if (std::holds_alternative<bool>(field.value)) {
    if (const auto* flag = std::get_if<bool>(&node.value)) return *flag;
    return std::nullopt;
  }
  if (const auto* whole = std::get_if<int64_t>(&node.value)) {
    if (std::holds_alternative<int64_t>(field.value)) return *whole;
    return static_cast<double>(*whole);
  }
  if (std::holds_alternative<int64_t>(field.value)) return std::nullopt;
  if (const auto* real = std::get_if<double>(&node.value)) return *real;
  const auto* text = std::get_if<std::string>(&node.value);
  if (infinities == Infinities::kTexts && text && *text == "inf") return std::numeric_limits<double>::infinity();
  if (infinities == Infinities::kTexts && text && *text == "-inf") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

FieldValue read_value(const Field& field, const SourceNode& node, Infinities infinities) {
  std::optional<FieldValue> value = convert(field, node, infinities);
  if (!value || !obeys_rule(field, *value)) fail_value(field, node, describe(node));
  return *std::move(value);
}

// Where else in the tree a key of that name is.
void find_by_name(const FieldGroup& group, std::string_view name, std::vector<std::string>& paths) {
  if (const Field* field = group.find_field(name)) paths.push_back(field->path);
  for (const FieldGroup& below : group.groups) {
    if (below.name == name) paths.push_back(below.path);
    find_by_name(below, name, paths);
  }
}

// The unknown path with each of its names replaced by the nearest valid one, or else the keys of that name in other
// tables.
std::vector<std::string> suggestions(const FieldGroup& root, std::string_view path) {
  const FieldGroup* group = &root;
  for (std::string_view rest = path; group;) {
    const size_t dot = rest.find('.');
    const std::optional<std::string> name = nearest_name(rest.substr(0, dot), group->names());
    if (!name) break;
    if (dot == rest.npos) return {join_path(group->path, *name)};
    rest.remove_prefix(dot + 1);
    group = group->find_group(*name);
  }
  std::vector<std::string> paths;
  find_by_name(root, path.substr(path.rfind('.') + 1), paths);
  return paths;
}

// `group` is the innermost known table of the path.
[[noreturn]] void fail_unknown(const FieldGroup& root, const FieldGroup& group, std::string_view where,
                               std::string_view path) {
  const std::vector<std::string> nearest = suggestions(root, path);
  if (!nearest.empty()) fail("{}unknown key '{}'; did you mean '{}'?", where, path, fmt::join(nearest, "' or '"));
  const std::string table = group.path.empty() ? "at the top" : fmt::format("of [{}]", group.path);
  const std::vector<std::string> names = group.names();
  if (names.empty()) fail("{}unknown key '{}'; there are no keys {}", where, path, table);
  fail("{}unknown key '{}'; the keys {} are: {}", where, path, table, fmt::join(names, ", "));
}

std::string shown_key(const std::string& key) {
  return is_bare_key(key) ? key : quote_for_message(key);
}

using Values = std::map<std::string, FieldValue>;

void read_group(const FieldGroup& root, const FieldGroup& group, const SourceNode& node, Infinities infinities,
                Values& values) {
  const auto* members = std::get_if<std::vector<SourceMember>>(&node.value);
  ADDER_CHECK(members, "{}{} must be a table with the keys {}; got {}", node.where,
              group.path.empty() ? "the configuration" : group.path, fmt::join(group.names(), ", "), describe(node));
  for (const SourceMember& member : *members) {
    if (const Field* field = group.find_field(member.key))
      values[field->path] = read_value(*field, member.node, infinities);
    else if (const FieldGroup* below = group.find_group(member.key))
      read_group(root, *below, member.node, infinities, values);
    else
      fail_unknown(root, group, member.where, join_path(group.path, shown_key(member.key)));
  }
}

void read(const VisitFunction& visit, const SourceNode& source, Infinities infinities) {
  const FieldGroup root = collect_fields(visit);
  Values values;
  read_group(root, root, source, infinities, values);
  assign_fields(visit, values);
}

void check_for_writing(const Field& field) {
  const auto check_utf8 = [&](const std::string& text) {
    ADDER_CHECK(is_utf8(text), "{} must be UTF-8 text, is {}", field.path, quote_for_message(text));
  };
  if (const auto* text = std::get_if<std::string>(&field.value)) check_utf8(*text);
  if (const auto* texts = std::get_if<std::vector<std::string>>(&field.value))
    std::for_each(texts->begin(), texts->end(), check_utf8);
  ADDER_CHECK(obeys_rule(field, field.value), "{} must be {}, is {}", field.path, rule_with_article(field),
              format_value(field.value));
}

void write_toml(const FieldGroup& group, std::string& text) {
  if (!group.path.empty() && !group.fields.empty())
    text += fmt::format("{}[{}]\n", text.empty() ? "" : "\n", group.path);
  for (const Field& field : group.fields) {
    check_for_writing(field);
    text += fmt::format("{} = {}\n", field.name, format_value(field.value));
  }
  for (const FieldGroup& below : group.groups) write_toml(below, text);
}

nlohmann::ordered_json write_json(const FieldGroup& group) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const Field& field : group.fields) {
    check_for_writing(field);
    const auto* real = std::get_if<double>(&field.value);
    if (real && std::isinf(*real))
      json[field.name] = format_value(field.value);
    else
      std::visit([&](const auto& value) { json[field.name] = value; }, field.value);
  }
  for (const FieldGroup& below : group.groups) json[below.name] = write_json(below);
  return json;
}

}  // namespace

void read_toml_file(const VisitFunction& visit, const std::filesystem::path& path) {
  const MappedFile file(path);
  const std::span<const std::byte> bytes = file.bytes();
  read_toml_text(visit, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path.string());
}

void read_toml_text(const VisitFunction& visit, std::string_view text, std::string_view source_name) {
  read(visit, source_from_toml(text, source_name), Infinities::kNumbers);
}

void from_json(const VisitFunction& visit, const nlohmann::ordered_json& json, std::string_view source_name) {
  read(visit, source_from_json(json, source_name), Infinities::kTexts);
}

void set_option(const VisitFunction& visit, std::string_view assignment) {
  const size_t equals = assignment.find('=');
  ADDER_CHECK(equals != assignment.npos, "--set: expected key=value, got {}", quote_for_message(assignment));
  std::string_view path = assignment.substr(0, equals);
  while (path.ends_with(' ')) path.remove_suffix(1);
  while (path.starts_with(' ')) path.remove_prefix(1);
  ADDER_CHECK(!path.empty(), "--set: expected key=value, got {}", quote_for_message(assignment));
  const std::string where = "--set: ";

  const FieldGroup root = collect_fields(visit);
  const FieldGroup* group = &root;
  std::string_view name = path;
  for (size_t dot; (dot = name.find('.')) != name.npos; name.remove_prefix(dot + 1)) {
    const FieldGroup* below = group->find_group(name.substr(0, dot));
    if (!below) fail_unknown(root, *group, where, path);
    group = below;
  }
  if (const FieldGroup* below = group->find_group(name))
    fail("{}{} is a table, not a value; its keys are: {}", where, below->path, fmt::join(below->names(), ", "));
  const Field* field = group->find_field(name);
  if (!field) fail_unknown(root, *group, where, path);
  const SourceNode node = source_from_argument(*field, assignment.substr(equals + 1), where);
  assign_fields(visit, {{field->path, read_value(*field, node, Infinities::kNumbers)}});
}

std::string to_toml(const VisitFunction& visit) {
  std::string text;
  write_toml(collect_fields(visit), text);
  return text;
}

nlohmann::ordered_json to_json(const VisitFunction& visit) {
  return write_json(collect_fields(visit));
}

}  // namespace adder::core::options_io
