#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace adder::core {

// Walks over a JSON text for the JSON library's parser and tells how far that has read.
class JsonIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  JsonIterator(const char* at, const char** reached) : at_(at), reached_(reached) {}
  reference operator*() const { return *at_; }
  JsonIterator& operator++() {
    *reached_ = ++at_;
    return *this;
  }
  JsonIterator operator++(int) {
    const JsonIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const JsonIterator& other) const { return at_ == other.at_; }

 private:
  const char* at_;
  const char** reached_;
};

// Throws "<what> is not valid JSON at byte N: a zero byte": the JSON library takes one for the end of its input. The
// text begins at byte `start` of its file.
void check_no_zero_byte(std::string_view text, const std::string& what, int64_t start);

// Why the JSON library refused a text, short enough for a message.
std::string json_error_reason(const std::exception& error);

// The JSON document that a whole file holds. Stricter than the library: a key may appear once in its object, and
// objects and arrays may be nested kMaxJsonDepth deep. Errors begin with `path` and name the byte.
inline constexpr int kMaxJsonDepth = 64;
nlohmann::ordered_json parse_json(std::string_view text, const std::string& path);
// The same, with each object's keys sorted, for objects in which many keys are looked for: the other one looks through
// all of them for each.
nlohmann::json parse_json_sorted(std::string_view text, const std::string& path);

}  // namespace adder::core
