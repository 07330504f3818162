#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace adder::core {

// What an integer field may hold, both ends included.
struct IntRange {
  int64_t min = std::numeric_limits<int64_t>::min();  // the smallest valid value
  int64_t max = std::numeric_limits<int64_t>::max();  // the largest valid value
};

// What a real field may hold. NaN is never valid. An infinity is valid only where it is given as a bound that is not
// open.
struct RealRange {
  double min = std::numeric_limits<double>::lowest();  // the smallest valid value
  double max = std::numeric_limits<double>::max();     // the largest valid value
  bool open_min = false;                               // min itself is not valid
  bool open_max = false;                               // max itself is not valid
};

// An options struct has one function `void visit(core::FieldVisitor& v)` that names each field once; reading TOML,
// `--set a.b=c`, printing, saving and the help text are visitors. `help` is one line of meaning.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;
  // A field that is true or false.
  virtual void field(const char* name, bool& value, const char* help) = 0;
  // A field that holds an integer.
  virtual void field(const char* name, int64_t& value, const char* help, IntRange range = {}) = 0;
  // A field that holds a real number.
  virtual void field(const char* name, double& value, const char* help, RealRange range = {}) = 0;
  // A field that holds any text.
  virtual void field(const char* name, std::string& value, const char* help) = 0;
  // A field that holds a list of texts.
  virtual void field(const char* name, std::vector<std::string>& value, const char* help) = 0;
  // A string that must be one of `choices`.
  virtual void choice(const char* name, std::string& value, const char* help,
                      const std::vector<std::string>& choices) = 0;

  // An enum; `names` lists its enumerators' names in the order of their values 0, 1, ...
  template <typename Enum>
  void choice_of(const char* name, Enum& value, const char* help, const std::vector<std::string>& names) {
    std::string text = names.at(static_cast<size_t>(value));
    choice(name, text, help, names);
    for (size_t i = 0; i < names.size(); ++i)
      if (names[i] == text) value = static_cast<Enum>(i);
  }

  // A nested options struct, a table of its own in TOML.
  template <typename Options>
  void group(const char* name, Options& options, const char* help) {
    begin_group(name, help);
    options.visit(*this);
    end_group();
  }

 protected:
  virtual void begin_group(const char* name, const char* help) = 0;  // what follows lies in this table
  virtual void end_group() = 0;                                      // as far as here
};

}  // namespace adder::core
