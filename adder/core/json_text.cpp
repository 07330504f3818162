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

template <typename Json>
Json parse(std::string_view text, const std::string& path) {
  using Event = typename Json::parse_event_t;
  check_no_zero_byte(text, path + ":", 0);
  const char* reached = text.data();
  const auto bad = [&](const std::string& reason) {
    fail("{}: is not valid JSON before byte {}: {}", path, reached - text.data(), reason);
  };
  std::vector<std::set<std::string>> names;  // of the objects that are open
  const auto check = [&](int depth, Event event, Json& parsed) {
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxJsonDepth) {
      bad(fmt::format("nested more than {} deep", kMaxJsonDepth));
    }
    if (event == Event::object_start) names.emplace_back();
    if (event == Event::object_end) names.pop_back();
    if (event == Event::key) {
      const auto& name = parsed.template get_ref<const std::string&>();
      if (!names.back().insert(name).second) bad(fmt::format("key {} appears twice", quote_for_message(name)));
    }
    return true;
  };
  try {
    return Json::parse(JsonIterator(text.data(), &reached), JsonIterator(text.data() + text.size(), &reached), check);
  } catch (const typename Json::exception& error) {
    bad(json_error_reason(error));
  }
  return {};
}

}  // namespace

nlohmann::ordered_json parse_json(std::string_view text, const std::string& path) {
  return parse<nlohmann::ordered_json>(text, path);
}

nlohmann::json parse_json_sorted(std::string_view text, const std::string& path) {
  return parse<nlohmann::json>(text, path);
}

}  // namespace adder::core
