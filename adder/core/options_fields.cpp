#include "adder/core/options_fields.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace adder::core {
namespace {

class Collector final : public FieldVisitor {
 public:
  void field(const char* name, bool& value, const char* help) override { add(name, help, value); }
  void field(const char* name, int64_t& value, const char* help, IntRange range) override {
    add(name, help, value).ints = range;
  }
  void field(const char* name, double& value, const char* help, RealRange range) override {
    add(name, help, value).reals = range;
  }
  void field(const char* name, std::string& value, const char* help) override { add(name, help, value); }
  void field(const char* name, std::vector<std::string>& value, const char* help) override { add(name, help, value); }
  void choice(const char* name, std::string& value, const char* help,
              const std::vector<std::string>& choices) override {
    Field& field = add(name, help, value);
    if (choices.empty()) throw std::logic_error(fmt::format("options: {} has no choices", field.path));
    field.choices = choices;
  }

  FieldGroup take() { return std::move(stack_.front()); }

 protected:
  void begin_group(const char* name, const char* help) override {
    stack_.push_back({.name = name, .path = claim(name), .help = help, .fields = {}, .groups = {}});
  }
  void end_group() override {
    FieldGroup group = std::move(stack_.back());
    stack_.pop_back();
    stack_.back().groups.push_back(std::move(group));
  }

 private:
  Field& add(const char* name, const char* help, FieldValue value) {
    Field field{.name = name,
                .path = claim(name),
                .help = help,
                .value = std::move(value),
                .ints = {},
                .reals = {},
                .choices = {}};
    return stack_.back().fields.emplace_back(std::move(field));
  }

  std::string claim(std::string_view name) const {
    const FieldGroup& group = stack_.back();
    std::string path = join_path(group.path, name);
    if (!is_bare_key(name)) throw std::logic_error(fmt::format("options: '{}' is no bare TOML key", path));
    if (group.find_field(name) || group.find_group(name))
      throw std::logic_error(fmt::format("options: '{}' is named twice", path));
    return path;
  }

  std::vector<FieldGroup> stack_ = std::vector<FieldGroup>(1);
};

class Assigner final : public FieldVisitor {
 public:
  explicit Assigner(const std::map<std::string, FieldValue>& values) : values_(values) {}

  void field(const char* name, bool& value, const char*) override { assign(name, value); }
  void field(const char* name, int64_t& value, const char*, IntRange) override { assign(name, value); }
  void field(const char* name, double& value, const char*, RealRange) override { assign(name, value); }
  void field(const char* name, std::string& value, const char*) override { assign(name, value); }
  void field(const char* name, std::vector<std::string>& value, const char*) override { assign(name, value); }
  void choice(const char* name, std::string& value, const char*, const std::vector<std::string>&) override {
    assign(name, value);
  }

 protected:
  void begin_group(const char* name, const char*) override { paths_.push_back(join_path(paths_.back(), name)); }
  void end_group() override { paths_.pop_back(); }

 private:
  template <typename T>
  void assign(const char* name, T& value) {
    const auto found = values_.find(join_path(paths_.back(), name));
    if (found != values_.end()) value = std::get<T>(found->second);
  }

  const std::map<std::string, FieldValue>& values_;
  std::vector<std::string> paths_ = {""};
};

std::string shortest(double value) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
}

std::string int_rule(const IntRange& range) {
  const bool lower = range.min != std::numeric_limits<int64_t>::min();
  const bool upper = range.max != std::numeric_limits<int64_t>::max();
  if (lower && upper) return fmt::format("integer in [{}, {}]", range.min, range.max);
  if (lower) return fmt::format("integer >= {}", range.min);
  if (upper) return fmt::format("integer <= {}", range.max);
  return "integer";
}

std::string real_rule(const RealRange& range) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // Any finite number on that side, an infinity not.
  const bool any_lower =
      range.min == std::numeric_limits<double>::lowest() || (range.min == -kInfinity && range.open_min);
  const bool any_upper = range.max == std::numeric_limits<double>::max() || (range.max == kInfinity && range.open_max);
  if (any_lower && any_upper) return "real";
  if (any_upper && range.min != -kInfinity)
    return fmt::format("real {} {}", range.open_min ? ">" : ">=", shortest(range.min));
  if (any_lower && range.max != kInfinity)
    return fmt::format("real {} {}", range.open_max ? "<" : "<=", shortest(range.max));
  return fmt::format("real in {}{}, {}{}", range.open_min || any_lower ? "(" : "[",
                     any_lower ? "-inf" : shortest(range.min), any_upper ? "inf" : shortest(range.max),
                     range.open_max || any_upper ? ")" : "]");
}

std::string choice_rule(const std::vector<std::string>& choices) {
  std::string text;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += i + 1 < choices.size() ? ", " : " or ";
    text += choices[i].empty() ? "\"\"" : choices[i];
  }
  return text;
}

}  // namespace

const Field* FieldGroup::find_field(std::string_view field_name) const {
  const auto found = std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return f.name == field_name; });
  return found == fields.end() ? nullptr : &*found;
}

const FieldGroup* FieldGroup::find_group(std::string_view group_name) const {
  const auto found =
      std::find_if(groups.begin(), groups.end(), [&](const FieldGroup& g) { return g.name == group_name; });
  return found == groups.end() ? nullptr : &*found;
}

std::vector<std::string> FieldGroup::names() const {
  std::vector<std::string> all;
  for (const Field& field : fields) all.push_back(field.name);
  for (const FieldGroup& group : groups) all.push_back(group.name);
  return all;
}

FieldGroup collect_fields(const VisitFunction& visit) {
  Collector collector;
  visit(collector);
  return collector.take();
}

void assign_fields(const VisitFunction& visit, const std::map<std::string, FieldValue>& values) {
  Assigner assigner(values);
  visit(assigner);
}

std::string field_rule(const Field& field) {
  if (!field.choices.empty()) return choice_rule(field.choices);
  if (std::holds_alternative<bool>(field.value)) return "true or false";
  if (std::holds_alternative<int64_t>(field.value)) return int_rule(field.ints);
  if (std::holds_alternative<double>(field.value)) return real_rule(field.reals);
  return std::holds_alternative<std::string>(field.value) ? "string" : "list of strings";
}

bool obeys_rule(const Field& field, const FieldValue& value) {
  if (const auto* whole = std::get_if<int64_t>(&value)) return *whole >= field.ints.min && *whole <= field.ints.max;
  if (const auto* real = std::get_if<double>(&value)) {
    const RealRange& range = field.reals;
    return (range.open_min ? *real > range.min : *real >= range.min) &&
           (range.open_max ? *real < range.max : *real <= range.max);
  }
  const auto* text = std::get_if<std::string>(&value);
  return !text || field.choices.empty() ||
         std::find(field.choices.begin(), field.choices.end(), *text) != field.choices.end();
}

std::string format_value(const FieldValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* whole = std::get_if<int64_t>(&value)) return std::to_string(*whole);
  if (const auto* real = std::get_if<double>(&value)) {
    const std::string digits = shortest(*real);
    // Without a point, an exponent or a name (inf, nan) it would read back as an integer.
    return digits.find_first_of(".en") == std::string::npos ? digits + ".0" : digits;
  }
  if (const auto* text = std::get_if<std::string>(&value)) return quote(*text);
  std::vector<std::string> items;
  for (const std::string& item : std::get<std::vector<std::string>>(value)) items.push_back(quote(item));
  return fmt::format("[{}]", fmt::join(items, ", "));
}

std::string quote(const std::string& text) {
  // JSON's escapes are TOML's too; TOML alone also wants the delete character escaped.
  std::string quoted;
  for (const char c : nlohmann::json(text).dump()) {
    if (c == '\x7f')
      quoted += "\\u007f";
    else
      quoted += c;
  }
  return quoted;
}

bool is_utf8(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

bool is_bare_key(std::string_view key) {
  return !key.empty() && std::all_of(key.begin(), key.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

std::string join_path(std::string_view group_path, std::string_view name) {
  return group_path.empty() ? std::string(name) : fmt::format("{}.{}", group_path, name);
}

}  // namespace adder::core
