#include "adder/core/options_source.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "adder/core/check.h"

namespace adder::core {
namespace {

// Deeper than any options struct, so that hostile input cannot exhaust the stack.
constexpr int kMaxDepth = 64;

std::string place(const toml::source_region& region, std::string_view source_name) {
  return fmt::format("{}:{}:{}: ", source_name, region.begin.line, region.begin.column);
}

SourceNode from_toml(const toml::node& node, std::string_view source_name, int depth) {
  SourceNode result{place(node.source(), source_name), SourceOther{fmt::format("a {}", [&] {
                      switch (node.type()) {
                        case toml::node_type::date:
                          return "date";
                        case toml::node_type::time:
                          return "time";
                        case toml::node_type::date_time:
                          return "date with time";
                        default:
                          return "value nested too deeply";
                      }
                    }())}};
  if (const auto* flag = node.as_boolean()) result.value = flag->get();
  if (const auto* whole = node.as_integer()) result.value = whole->get();
  if (const auto* real = node.as_floating_point()) result.value = real->get();
  if (const auto* text = node.as_string()) result.value = text->get();
  if (depth == kMaxDepth) return result;
  if (const auto* array = node.as_array()) {
    std::vector<SourceNode> items;
    for (const toml::node& item : *array) items.push_back(from_toml(item, source_name, depth + 1));
    result.value = std::move(items);
  }
  if (const auto* table = node.as_table()) {
    using Entry = std::pair<const toml::key*, const toml::node*>;
    std::vector<Entry> entries;
    for (const auto& [key, value] : *table) entries.emplace_back(&key, &value);
    // toml++ sorts by key; the first mistake of the file is to be reported first.
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
      const toml::source_position& left = a.first->source().begin;
      const toml::source_position& right = b.first->source().begin;
      return std::pair(left.line, left.column) < std::pair(right.line, right.column);
    });
    std::vector<SourceMember> members;
    for (const auto& [key, value] : entries)
      members.push_back(
          {std::string(key->str()), place(key->source(), source_name), from_toml(*value, source_name, depth + 1)});
    result.value = std::move(members);
  }
  return result;
}

SourceNode from_json(const nlohmann::ordered_json& json, const std::string& where, int depth) {
  using Type = nlohmann::ordered_json::value_t;
  SourceNode result{where, SourceOther{"a value nested too deeply"}};
  switch (json.type()) {
    case Type::boolean:
      result.value = json.get<bool>();
      break;
    case Type::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        result.value = SourceOther{fmt::format("the integer {}", json.get<uint64_t>())};
      else
        result.value = json.get<int64_t>();
      break;
    case Type::number_integer:
      result.value = json.get<int64_t>();
      break;
    case Type::number_float:
      result.value = json.get<double>();
      break;
    case Type::string:
      result.value = json.get<std::string>();
      break;
    case Type::array:
      if (depth < kMaxDepth) {
        std::vector<SourceNode> items;
        for (const auto& item : json) items.push_back(from_json(item, where, depth + 1));
        result.value = std::move(items);
      }
      break;
    case Type::object:
      if (depth < kMaxDepth) {
        std::vector<SourceMember> members;
        for (const auto& [key, value] : json.items())
          members.push_back({key, where, from_json(value, where, depth + 1)});
        result.value = std::move(members);
      }
      break;
    default:
      result.value = SourceOther{json.is_null() ? "null" : "a value that is no JSON"};
  }
  return result;
}

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\n\r");
  return first == text.npos ? "" : text.substr(first, text.find_last_not_of(" \t\n\r") + 1 - first);
}

// The text as one TOML value, or as a string where it is none.
SourceNode toml_value_or_text(std::string_view text, const std::string& where) {
  try {
    // Within the brackets a comment, a second value or a second line would break the syntax or the count.
    const toml::table table = toml::parse(fmt::format("value = [{}]", text));
    const toml::array* values = table["value"].as_array();
    if (table.size() == 1 && values && values->size() == 1) {
      SourceNode node = from_toml(values->front(), "", 0);
      node.where = where;
      if (auto* items = std::get_if<std::vector<SourceNode>>(&node.value))
        for (SourceNode& item : *items) item.where = where;
      return node;
    }
  } catch (const toml::parse_error&) {  // then it is text
  }
  return {where, std::string(text)};
}

}  // namespace

SourceNode source_from_toml(std::string_view text, std::string_view source_name) {
  try {
    return from_toml(toml::parse(text), source_name, 0);
  } catch (const toml::parse_error& error) {
    fail("{}{}", place(error.source(), source_name), error.description());
  }
}

SourceNode source_from_json(const nlohmann::ordered_json& json, std::string_view source_name) {
  return from_json(json, fmt::format("{}: ", source_name), 0);
}

SourceNode source_from_argument(const Field& field, std::string_view text, const std::string& where) {
  text = trim(text);
  if (std::holds_alternative<std::string>(field.value)) {
    if (!text.starts_with('"') && !text.starts_with('\'')) return {where, std::string(text)};
    SourceNode node = toml_value_or_text(text, where);
    return std::holds_alternative<std::string>(node.value) ? node : SourceNode{where, std::string(text)};
  }
  if (!std::holds_alternative<std::vector<std::string>>(field.value)) return toml_value_or_text(text, where);
  if (text.starts_with('[') && text.ends_with(']')) return toml_value_or_text(text, where);

  std::vector<SourceNode> items;
  for (std::string_view rest = text; !text.empty();) {
    const size_t comma = rest.find(',');
    const std::string_view item = trim(rest.substr(0, comma));
    ADDER_CHECK(!item.empty(), "{}{} has an empty item in {}; an empty text is given as [\"\"]", where, field.path,
                quote_for_message(text));
    items.push_back({where, std::string(item)});
    if (comma == rest.npos) break;
    rest.remove_prefix(comma + 1);
  }
  return {where, std::move(items)};
}

std::string describe(const SourceNode& node) {
  if (const auto* other = std::get_if<SourceOther>(&node.value)) return other->description;
  if (const auto* flag = std::get_if<bool>(&node.value)) return fmt::format("the boolean {}", *flag);
  if (const auto* whole = std::get_if<int64_t>(&node.value)) return fmt::format("the integer {}", *whole);
  if (const auto* real = std::get_if<double>(&node.value)) return fmt::format("the real {}", format_value(*real));
  if (const auto* text = std::get_if<std::string>(&node.value))
    return fmt::format("the string {}", quote_for_message(*text));
  return std::holds_alternative<std::vector<SourceNode>>(node.value) ? "a list" : "a table";
}

std::string quote_for_message(std::string_view text) {
  constexpr size_t kLongest = 100;
  const bool cut = text.size() > kLongest;
  const std::string shown = std::string(text.substr(0, kLongest)) + (cut ? "..." : "");
  return nlohmann::json(shown).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace adder::core
