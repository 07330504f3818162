#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "adder/core/options_fields.h"

// What a TOML file, a JSON or a `--set` says, before it is held against the fields.
namespace adder::core {

struct SourceMember;

// A value of a type that no field has ("a date", "null").
struct SourceOther {
  std::string description;
};

struct SourceNode {
  std::string where;  // begins the message: "x.toml:3:6: "
  std::variant<SourceOther, bool, int64_t, double, std::string, std::vector<SourceNode>, std::vector<SourceMember>>
      value;
};

struct SourceMember {
  std::string key;
  std::string where;
  SourceNode node;
};

// Throw adder::Error with line and column on a syntax error; members come in the order of the text.
SourceNode source_from_toml(std::string_view text, std::string_view source_name);
SourceNode source_from_json(const nlohmann::ordered_json& json, std::string_view source_name);

// The right side of a `--set`, read as a value of this field's type where it can be and as text otherwise.
SourceNode source_from_argument(const Field& field, std::string_view text, const std::string& where);

// "the integer 3", "the string \"abc\"", "a table".
std::string describe(const SourceNode& node);

// Text within quotes, cut to a length that fits a message.
std::string quote_for_message(std::string_view text);

}  // namespace adder::core
