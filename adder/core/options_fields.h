#pragma once

#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "adder/core/options.h"

// An options struct as data: what options_io reads from it and writes to it.
namespace adder::core {

// Calls `visit` of some options struct.
using VisitFunction = std::function<void(FieldVisitor&)>;

using FieldValue = std::variant<bool, int64_t, double, std::string, std::vector<std::string>>;

struct Field {
  std::string name;  // "lr"
  std::string path;  // "train.lr"
  std::string help;
  FieldValue value;  // the present one; its alternative is the field's type
  IntRange ints;
  RealRange reals;
  std::vector<std::string> choices;  // empty: any text
};

struct FieldGroup {
  std::string name;
  std::string path;  // empty for the whole struct
  std::string help;
  std::vector<Field> fields;
  std::vector<FieldGroup> groups;

  // nullptr where there is none.
  const Field* find_field(std::string_view field_name) const;
  const FieldGroup* find_group(std::string_view group_name) const;
  // Of its fields, then of its groups.
  std::vector<std::string> names() const;
};

// Throws std::logic_error where a name is given twice in a table, or is no bare TOML key, or a choice has no choices.
FieldGroup collect_fields(const VisitFunction& visit);

// Sets the fields at these paths, whose values must be valid, and leaves the others.
void assign_fields(const VisitFunction& visit, const std::map<std::string, FieldValue>& values);

// What a field's value must be: "real > 0", "integer in [1, 16]", "constant, cosine or linear".
std::string field_rule(const Field& field);

// Whether a value of the field's type obeys the rule.
bool obeys_rule(const Field& field, const FieldValue& value);

// As TOML writes it: reals in the fewest digits that read back to the same bits. Text must be UTF-8 (is_utf8).
std::string format_value(const FieldValue& value);
std::string quote(const std::string& text);

bool is_utf8(const std::string& text);
bool is_bare_key(std::string_view key);
std::string join_path(std::string_view group_path, std::string_view name);

}  // namespace adder::core
