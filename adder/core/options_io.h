#pragma once

#include <concepts>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "adder/core/options_fields.h"

// Reading and writing an options struct: any struct with `void visit(core::FieldVisitor&)`.
//
// Each reader sets the fields that its source names and leaves the others. It throws adder::Error, naming the place,
// the key, what was expected and what came, on broken syntax, unknown keys (with the nearest valid one), values of
// another type or out of range; then no field has been set. An integer is taken for a real; nothing else is converted.
namespace adder::core {

// What has its fields named by visit(): MambaLMOptions, RunConfig, any struct of yours.
template <typename T>
concept OptionsStruct = requires(T options, FieldVisitor& visitor) { options.visit(visitor); };

// The forms for any struct; what the templates below call.
namespace options_io {
void read_toml_file(const VisitFunction& visit, const std::filesystem::path& path);
void read_toml_text(const VisitFunction& visit, std::string_view text, std::string_view source_name);
void set_option(const VisitFunction& visit, std::string_view assignment);
void from_json(const VisitFunction& visit, const nlohmann::ordered_json& json, std::string_view source_name);
std::string to_toml(const VisitFunction& visit);
nlohmann::ordered_json to_json(const VisitFunction& visit);
std::string help_table(const VisitFunction& visit);

template <OptionsStruct Options>
VisitFunction visit_of(Options& options) {
  return [&options](FieldVisitor& visitor) { options.visit(visitor); };
}
}  // namespace options_io

// A TOML file; a nested struct is a table.
template <OptionsStruct Options>
void read_toml_file(Options& options, const std::filesystem::path& path) {
  options_io::read_toml_file(options_io::visit_of(options), path);
}

// The same from a text. Errors begin "<source_name>:<line>:<column>: ".
template <OptionsStruct Options>
void read_toml_text(Options& options, std::string_view text, std::string_view source_name) {
  options_io::read_toml_text(options_io::visit_of(options), text, source_name);
}

// One `--set`: "train.lr=1e-3". The value is read as the field's type: text needs no quotes (with them it is read as
// TOML, escapes and all), a list is either "a,b" or a TOML array.
template <OptionsStruct Options>
void set_option(Options& options, std::string_view assignment) {
  options_io::set_option(options_io::visit_of(options), assignment);
}

// What to_json wrote.
template <OptionsStruct Options>
void from_json(Options& options, const nlohmann::ordered_json& json, std::string_view source_name) {
  options_io::from_json(options_io::visit_of(options), json, source_name);
}

// Every key with its present value; reading it back gives the same bits. Throws adder::Error where a value breaks its
// field's own rule.
template <OptionsStruct Options>
std::string to_toml(Options options) {
  return options_io::to_toml(options_io::visit_of(options));
}

// The same as JSON, which has no infinities: these are the texts "inf" and "-inf".
template <OptionsStruct Options>
nlohmann::ordered_json to_json(Options options) {
  return options_io::to_json(options_io::visit_of(options));
}

// One line a field, "train.lr  real > 0, default 0.001: learning rate"; the present values are shown as the defaults.
template <OptionsStruct Options>
std::string help_table(Options options) {
  return options_io::help_table(options_io::visit_of(options));
}

}  // namespace adder::core
