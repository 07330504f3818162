#include "adder/core/json_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/error_of.h"

namespace adder::core {
namespace {
using testing::HasSubstr;

// From a buffer without slack, where a sanitizer sees every byte read beyond it.
nlohmann::ordered_json parse(const std::string& text) {
  const std::vector<char> exact(text.begin(), text.end());
  return parse_json({exact.data(), exact.size()}, "x.json");
}

std::string error_of(const std::string& text) {
  return adder::error_of([&] { parse(text); });
}

TEST(JsonText, KeepsOrderAndValues) {
  const std::string text = R"({"b":[1,-2,1.5,18446744073709551615,{"b":null}],"a":{"b":"é\n","":true}})";
  EXPECT_EQ(parse(text).dump(), text);
  EXPECT_EQ(parse(" 3 ").dump(), "3");
}

TEST(JsonText, AKeyMayAppearOnceInItsObject) {
  EXPECT_EQ(error_of(R"({"a":1,"b":2,"a":3})"), "x.json: is not valid JSON before byte 16: key \"a\" appears twice");
  EXPECT_THAT(error_of(R"([{"a":{"x":1,"\u0078":1}}])"), HasSubstr("key \"x\" appears twice"));
  EXPECT_THAT(error_of(R"({"a":{"b":1},"b":1,"b":1})"), HasSubstr("key \"b\" appears twice"));
  EXPECT_EQ(error_of(R"([{"a":1},{"a":{"a":1}}])"), "no error");
}

// In quadratic time this would take minutes.
TEST(JsonText, ManyKeysTakeNoLongerEach) {
  std::string text = "{\"first\":0";
  for (int i = 0; i < 300'000; ++i) text += ",\"" + std::to_string(i) + "\":0";
  const nlohmann::ordered_json document = parse(text + "}");
  EXPECT_EQ(document.size(), 300'001u);
  EXPECT_EQ(document.begin().key(), "first");
  EXPECT_THAT(error_of(text + ",\"first\":1}"), HasSubstr("key \"first\" appears twice"));
}

TEST(JsonText, BrokenTexts) {
  EXPECT_THAT(error_of(""), HasSubstr("x.json: is not valid JSON before byte 0: "));
  EXPECT_THAT(error_of(R"({"a":1)"), HasSubstr("before byte 6: syntax error while parsing object"));
  EXPECT_THAT(error_of("{}}"), HasSubstr("before byte 3"));
  EXPECT_THAT(error_of("{\"\xff\":1}"), HasSubstr("UTF-8"));
  EXPECT_EQ(error_of("1e999"), "x.json: is not valid JSON before byte 5: number overflow parsing '1e999'");
  EXPECT_EQ(error_of(std::string("{}\0", 3)), "x.json: is not valid JSON at byte 2: a zero byte");
  EXPECT_THAT(error_of("NaN"), HasSubstr("not valid JSON"));
  EXPECT_LT(error_of("{\"" + std::string(100000, 'a')).size(), 300u);
}

TEST(JsonText, NestingHasALimit) {
  const auto nested = [](int depth) {
    std::string text;
    for (int i = 0; i < depth; ++i) text += i % 2 ? R"({"a":)" : "[";
    text += "1";
    for (int i = depth; i-- > 0;) text += i % 2 ? "}" : "]";
    return text;
  };
  EXPECT_EQ(error_of(nested(kMaxJsonDepth)), "no error");
  EXPECT_THAT(error_of(nested(kMaxJsonDepth + 1)), HasSubstr("nested more than 64 deep"));
  EXPECT_THAT(error_of(std::string(1'000'000, '[')), HasSubstr("nested more than 64 deep"));
}

}  // namespace
}  // namespace adder::core
