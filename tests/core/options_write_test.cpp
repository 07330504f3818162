#include <gmock/gmock.h>

#include <bit>
#include <cmath>
#include <random>

#include "adder/core/options_io.h"
#include "tests/core/example_options.h"
#include "tests/error_of.h"

namespace adder::core {
namespace {

using testing::HasSubstr;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Real {
  double value = 0;
  void visit(FieldVisitor& v) { v.field("value", value, "any real", {.min = -kInfinity, .max = kInfinity}); }
};

struct Text {
  std::string value;
  std::vector<std::string> list;
  void visit(FieldVisitor& v) {
    v.field("value", value, "any text");
    v.field("list", list, "any texts");
  }
  bool operator==(const Text&) const = default;
};

ExampleOptions changed_everywhere() {
  ExampleOptions options;
  options.seed = std::numeric_limits<int64_t>::min();
  options.name = "a \"quoted\" \\ text\n\twith lines, größe";
  options.device = "cuda";
  options.train.schedule = {Schedule::kLinear, 17};
  options.train.lr = 0.1 + 0.2;
  options.train.decay = 0;
  options.train.clip = 1e300;
  options.train.offset = -5e-324;
  options.train.amp = true;
  options.data.files = {"a,b", "", "it's"};
  options.data.split = "";
  return options;
}

std::string json_error(std::string_view text) {
  ExampleOptions options;
  const std::string message =
      error_of([&] { from_json(options, nlohmann::ordered_json::parse(text), "checkpoint/options.json"); });
  EXPECT_NE(message, "no error") << text;
  EXPECT_EQ(options, ExampleOptions());
  return message;
}

TEST(WriteToml, EachKeyUnderItsTable) {
  const ExampleOptions options;
  EXPECT_EQ(to_toml(options), R"(seed = 1
name = "run"
device = "cpu"

[train]
lr = 0.001
decay = 0.1
clip = inf
offset = 0.0
amp = false

[train.schedule]
kind = "cosine"
warmup_steps = 0

[data]
files = []
split = "train|test"
)");
}

TEST(WriteToml, ReadsBackTheSame) {
  const ExampleOptions options = changed_everywhere();
  ExampleOptions back;
  read_toml_text(back, to_toml(options), "x.toml");
  EXPECT_EQ(back, options);
  EXPECT_EQ(to_toml(back), to_toml(options));
}

TEST(WriteToml, RealsReadBackToTheSameBits) {
  std::vector<double> values = {0.0,
                                -0.0,
                                1.0,
                                -1.0,
                                0.1,
                                1e-5,
                                1e22,
                                1e23,
                                123456789.0,
                                9007199254740993.0,
                                5e-324,
                                2.2250738585072014e-308,
                                2.2250738585072009e-308,
                                std::numeric_limits<double>::max(),
                                std::numeric_limits<double>::lowest(),
                                kInfinity,
                                -kInfinity};
  std::mt19937_64 random(5);
  while (values.size() < 20'000) {
    const double value = std::bit_cast<double>(random());
    if (!std::isnan(value)) values.push_back(value);
  }
  for (const double value : values) {
    const std::string text = to_toml(Real{value});
    Real back{std::nan("")};
    read_toml_text(back, text, "x.toml");
    ASSERT_EQ(std::bit_cast<uint64_t>(back.value), std::bit_cast<uint64_t>(value)) << text;
    back.value = 0.5;
    set_option(back, text);
    ASSERT_EQ(std::bit_cast<uint64_t>(back.value), std::bit_cast<uint64_t>(value)) << text;
    back.value = 0.5;
    const std::string json = to_json(Real{value}).dump();
    from_json(back, nlohmann::ordered_json::parse(json), "x.json");
    ASSERT_EQ(std::bit_cast<uint64_t>(back.value), std::bit_cast<uint64_t>(value)) << json;
  }
}

TEST(WriteToml, RealsStayRealsAndAreShort) {
  EXPECT_EQ(to_toml(Real{3}), "value = 3.0\n");
  EXPECT_EQ(to_toml(Real{-0.0}), "value = -0.0\n");
  EXPECT_EQ(to_toml(Real{0.1}), "value = 0.1\n");
  EXPECT_EQ(to_toml(Real{1e20}), "value = 1e+20\n");
  EXPECT_EQ(to_toml(Real{-kInfinity}), "value = -inf\n");
  EXPECT_EQ(to_json(Real{3}).dump(), R"({"value":3.0})");
}

TEST(WriteToml, AnyUtf8TextReadsBack) {
  std::vector<std::string> texts = {"",           "\"",     "'",
                                    "\\",         "\\n",    "#",
                                    "= [x]",      "\"\"\"", std::string("\0", 1),
                                    "\x7f",       "\r\n",   "\u0080\u0085\u2028\uFEFF\uFFFF",
                                    "\U0001F40D", "\u202E"};
  std::string controls;
  for (char c = 1; c < 32; ++c) controls += c;
  texts.push_back(controls);
  for (const std::string& text : texts) {
    const Text options{text, {text, "x", text}};
    Text back;
    read_toml_text(back, to_toml(options), "x.toml");
    EXPECT_EQ(back, options) << to_toml(options);
    Text from;
    from_json(from, nlohmann::ordered_json::parse(to_json(options).dump()), "x.json");
    EXPECT_EQ(from, options);
    Text set;
    set_option(set, "value=" + quote(text));
    EXPECT_EQ(set.value, text);
  }
}

TEST(WriteToml, RefusesWhatCouldNotBeReadBack) {
  EXPECT_EQ(error_of([] { (void)to_toml(Real{std::nan("")}); }), "value must be a real in [-inf, inf], is nan");
  EXPECT_EQ(error_of([] { (void)to_json(Real{std::nan("")}); }), "value must be a real in [-inf, inf], is nan");
  ExampleOptions options;
  options.train.lr = 0;
  EXPECT_EQ(error_of([&] { (void)to_toml(options); }), "train.lr must be a real > 0, is 0.0");
  options = {};
  options.train.schedule.warmup_steps = 5000;
  EXPECT_EQ(error_of([&] { (void)to_json(options); }),
            "train.schedule.warmup_steps must be an integer in [0, 1000], is 5000");
  options = {};
  options.device = "tpu";
  EXPECT_EQ(error_of([&] { (void)to_toml(options); }), "device must be cpu or cuda, is \"tpu\"");
  EXPECT_EQ(error_of([] { (void)to_toml(Text{"\xff", {}}); }), "value must be UTF-8 text, is \"\xEF\xBF\xBD\"");
  EXPECT_EQ(error_of([] { (void)to_json(Text{"", {"\xff"}}); }), "list must be UTF-8 text, is \"\xEF\xBF\xBD\"");
}

TEST(WriteJson, KeysInOrderAndInfinityAsText) {
  EXPECT_EQ(
      to_json(ExampleOptions()).dump(),
      R"({"seed":1,"name":"run","device":"cpu","train":{"lr":0.001,"decay":0.1,"clip":"inf","offset":0.0,"amp":false,)"
      R"("schedule":{"kind":"cosine","warmup_steps":0}},"data":{"files":[],"split":"train|test"}})");
}

TEST(ReadJson, ReadsBackTheSame) {
  const ExampleOptions options = changed_everywhere();
  ExampleOptions back;
  from_json(back, nlohmann::ordered_json::parse(to_json(options).dump(2)), "x.json");
  EXPECT_EQ(back, options);
}

TEST(ReadJson, SetsWhatItNamesAndLeavesTheRest) {
  ExampleOptions options;
  options.train.decay = 0.5;
  from_json(options, nlohmann::ordered_json::parse(R"({"train": {"lr": 2}})"), "x.json");
  EXPECT_EQ(options.train.lr, 2.0);
  EXPECT_EQ(options.train.decay, 0.5);
  from_json(options, nlohmann::ordered_json::object(), "x.json");
  EXPECT_EQ(options.train.lr, 2.0);
}

TEST(ReadJson, IsAsStrictAsToml) {
  EXPECT_EQ(json_error(R"({"seed": 5, "train": {"lrr": 1}})"),
            "checkpoint/options.json: unknown key 'train.lrr'; did you mean 'train.lr'?");
  EXPECT_EQ(json_error(R"({"seed": 5, "train": {"lr": "1"}})"),
            "checkpoint/options.json: train.lr must be a real > 0, got the string \"1\"");
  EXPECT_EQ(json_error(R"({"train": {"lr": "inf"}})"),
            "checkpoint/options.json: train.lr must be a real > 0, got the string \"inf\"");
  EXPECT_EQ(json_error(R"({"seed": 1.0})"), "checkpoint/options.json: seed must be an integer, got the real 1.0");
  EXPECT_EQ(json_error(R"({"seed": null})"), "checkpoint/options.json: seed must be an integer, got null");
  EXPECT_EQ(json_error(R"({"seed": 18446744073709551615})"),
            "checkpoint/options.json: seed must be an integer, got the integer 18446744073709551615");
  EXPECT_EQ(json_error(R"({"train": {"schedule": {"kind": "linaer"}}})"),
            "checkpoint/options.json: train.schedule.kind must be constant, cosine or linear, got the string "
            "\"linaer\"; did you mean \"linear\"?");
  EXPECT_EQ(json_error(R"({"train": []})"),
            "checkpoint/options.json: train must be a table with the keys lr, decay, clip, offset, amp, schedule; got "
            "a list");
  EXPECT_EQ(json_error("3"),
            "checkpoint/options.json: the configuration must be a table with the keys seed, name, device, train, data; "
            "got the integer 3");
}

TEST(ReadJson, DeepNestingIsAMistakeAndNoCrash) {
  EXPECT_THAT(json_error(R"({"seed": )" + std::string(200'000, '[') + std::string(200'000, ']') + "}"),
              HasSubstr("seed must be an integer, got a list"));
}

TEST(Help, OneLineAField) {
  EXPECT_EQ(help_table(ExampleOptions()), R"(seed                         integer, default 1: random seed
name                         string, default "run": name of the run
device                       cpu or cuda, default "cpu": where it runs

[train] how the model is trained
train.lr                     real > 0, default 0.001: learning rate
train.decay                  real in [0, 1), default 0.1: weight decay
train.clip                   real in [0, inf], default inf: largest gradient norm
train.offset                 real, default 0.0: added to the loss
train.amp                    true or false, default false: mixed precision

[train.schedule] learning rate over time
train.schedule.kind          constant, cosine or linear, default "cosine": shape of the schedule
train.schedule.warmup_steps  integer in [0, 1000], default 0: steps of linear warm-up

[data] what it is trained on
data.files                   list of strings, default []: text files
data.split                   string, default "train|test": names of the parts, cut at |
)");
}

TEST(FieldRule, NamesEachKindOfRange) {
  const auto real = [](RealRange range) {
    return field_rule({.name = "", .path = "", .help = "", .value = 0.0, .ints = {}, .reals = range, .choices = {}});
  };
  const auto whole = [](IntRange range) {
    return field_rule(
        {.name = "", .path = "", .help = "", .value = int64_t{0}, .ints = range, .reals = {}, .choices = {}});
  };
  EXPECT_EQ(real({}), "real");
  EXPECT_EQ(real({.min = 0}), "real >= 0");
  EXPECT_EQ(real({.min = 0, .open_min = true}), "real > 0");
  EXPECT_EQ(real({.max = 2.5}), "real <= 2.5");
  EXPECT_EQ(real({.max = 2.5, .open_max = true}), "real < 2.5");
  EXPECT_EQ(real({0, 1}), "real in [0, 1]");
  EXPECT_EQ(real({0, 1, true, true}), "real in (0, 1)");
  EXPECT_EQ(real({.min = 0, .max = kInfinity}), "real in [0, inf]");
  EXPECT_EQ(real({.min = 0, .max = kInfinity, .open_max = true}), "real >= 0");
  EXPECT_EQ(real({.min = -kInfinity}), "real in [-inf, inf)");
  EXPECT_EQ(real({.max = kInfinity}), "real in (-inf, inf]");
  EXPECT_EQ(real({-kInfinity, kInfinity, true, true}), "real");
  EXPECT_EQ(whole({}), "integer");
  EXPECT_EQ(whole({.min = 1}), "integer >= 1");
  EXPECT_EQ(whole({.max = -1}), "integer <= -1");
  EXPECT_EQ(whole({.min = 1, .max = 16}), "integer in [1, 16]");
}

struct NamedTwice {
  int64_t a = 0, b = 0;
  void visit(FieldVisitor& v) {
    v.field("a", a, "first");
    v.field("a", b, "second");
  }
};

struct OddName {
  int64_t a = 0;
  void visit(FieldVisitor& v) { v.field("a.b", a, "a dot"); }
};

struct NoChoices {
  std::string a;
  void visit(FieldVisitor& v) { v.choice("a", a, "nothing to choose", {}); }
};

struct Empty {
  void visit(FieldVisitor&) {}
};

TEST(CollectFields, MistakesInTheStructAreLogicErrors) {
  EXPECT_THROW((void)to_toml(NamedTwice()), std::logic_error);
  EXPECT_THROW((void)to_toml(OddName()), std::logic_error);
  EXPECT_THROW((void)to_toml(NoChoices()), std::logic_error);
}

TEST(CollectFields, AStructWithoutFields) {
  Empty options;
  EXPECT_EQ(to_toml(options), "");
  EXPECT_EQ(to_json(options).dump(), "{}");
  EXPECT_EQ(help_table(options), "");
  EXPECT_EQ(error_of([&] { read_toml_text(options, "a = 1", "x.toml"); }),
            "x.toml:1:1: unknown key 'a'; there are no keys at the top");
}

}  // namespace
}  // namespace adder::core
