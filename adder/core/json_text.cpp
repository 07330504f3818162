#include "adder/core/json_text.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "adder/core/check.h"
#include "adder/core/options_source.h"

namespace adder::core {

void check_no_zero_byte(std::string_view text, const std::string& what, int64_t start) {
  const size_t zero = text.find('\0');
  ADDER_CHECK(zero == text.npos, "{} is not valid JSON at byte {}: a zero byte", what,
              start + static_cast<int64_t>(zero));
}

std::string json_error_reason(const std::exception& error) {
  // The library's text begins with its own error number and ends in the token that it could not read, which may be the
  // whole input.
  constexpr size_t kShown = 200;
  std::string_view reason = error.what();
  if (const size_t start = reason.rfind("syntax error", kShown); start != reason.npos) {
    reason.remove_prefix(start);
  } else if (const size_t number = reason.find("] "); number != reason.npos) {
    reason.remove_prefix(number + 2);
  }
  reason = reason.substr(0, reason.find("; last read"));
  return std::string(reason.substr(0, kShown));
}

namespace {

// Builds the document piece by piece: the library's own builder looks through all keys of an ordered object for each
// new one, which takes quadratic time.
template <typename Json>
class Builder : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, const std::string& path) : text_(text), path_(path), reached_(text.data()) {}

  Json build() {
    const char* end = text_.data() + text_.size();
    Json::sax_parse(JsonIterator(text_.data(), &reached_), JsonIterator(end, &reached_), this);
    return std::move(root_);
  }

  bool null() override { return put(nullptr) != nullptr; }
  bool boolean(bool value) override { return put(value) != nullptr; }
  bool number_integer(int64_t value) override { return put(value) != nullptr; }
  bool number_unsigned(uint64_t value) override { return put(value) != nullptr; }
  bool number_float(double value, const std::string&) override { return put(value) != nullptr; }
  bool string(std::string& value) override { return put(std::move(value)) != nullptr; }
  bool binary(typename Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Json::object()); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    if (!open_.back().names.insert(name).second) bad(fmt::format("key {} appears twice", quote_for_message(name)));
    key_ = std::move(name);
    return true;
  }

  bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
    bad(json_error_reason(error));
    return false;
  }

 private:
  // An object or array whose end has not come; nothing is put into those around it, so that it keeps its place.
  struct Open {
    Json* value;
    std::set<std::string> names;
  };

  [[noreturn]] void bad(const std::string& reason) const {
    fail("{}: is not valid JSON before byte {}: {}", path_, reached_ - text_.data(), reason);
  }

  Json* put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& around = *open_.back().value;
    if (around.is_array()) {
      around.push_back(std::move(value));
      return &around.back();
    }
    auto& members = around.template get_ref<typename Json::object_t&>();
    if constexpr (requires { members.emplace_back(key_, std::move(value)); })
      return &members.emplace_back(key_, std::move(value)).second;
    else
      return &members.emplace(key_, std::move(value)).first->second;
  }

  bool open(Json value) {
    if (open_.size() >= static_cast<size_t>(kMaxJsonDepth)) bad(fmt::format("nested more than {} deep", kMaxJsonDepth));
    open_.push_back({put(std::move(value)), {}});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& path_;
  const char* reached_;
  Json root_;
  std::vector<Open> open_;
  std::string key_;
};

template <typename Json>
Json parse(std::string_view text, const std::string& path) {
  check_no_zero_byte(text, path + ":", 0);
  return Builder<Json>(text, path).build();
}

}  // namespace

nlohmann::ordered_json parse_json(std::string_view text, const std::string& path) {
  return parse<nlohmann::ordered_json>(text, path);
}

nlohmann::json parse_json_sorted(std::string_view text, const std::string& path) {
  return parse<nlohmann::json>(text, path);
}

}  // namespace adder::core
