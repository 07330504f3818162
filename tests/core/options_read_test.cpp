#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <random>

#include "adder/core/options_io.h"
#include "tests/core/example_options.h"
#include "tests/error_of.h"

namespace adder::core {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

ExampleOptions read(std::string_view text) {
  ExampleOptions options;
  read_toml_text(options, text, "x.toml");
  return options;
}

// Also checks that nothing was set: the text begins with keys that are all right.
std::string toml_error(const std::string& text) {
  ExampleOptions options;
  const std::string message =
      error_of([&] { read_toml_text(options, "name = 'changed'\ndata.split = 'changed'\n" + text, "x.toml"); });
  EXPECT_NE(message, "no error") << text;
  EXPECT_EQ(options, ExampleOptions()) << "an error must leave the options as they were";
  return message;
}

std::string set_error(std::string_view assignment) {
  ExampleOptions options;
  const std::string message = error_of([&] { set_option(options, assignment); });
  EXPECT_NE(message, "no error") << assignment;
  EXPECT_EQ(options, ExampleOptions());
  return message;
}

ExampleOptions with(std::string_view assignment) {
  ExampleOptions options;
  set_option(options, assignment);
  return options;
}

TEST(ReadToml, SetsWhatTheTextNamesAndLeavesTheRest) {
  ExampleOptions options;
  options.train.decay = 0.5;
  read_toml_text(options, R"(
seed = -7
device = "cuda"
[train]
lr = 3e-4
amp = true
schedule.kind = "linear"
[data]
files = ["a.txt", 'b c.txt']
)",
                 "x.toml");
  ExampleOptions expected;
  expected.seed = -7;
  expected.device = "cuda";
  expected.train.lr = 3e-4;
  expected.train.amp = true;
  expected.train.decay = 0.5;
  expected.train.schedule.kind = Schedule::kLinear;
  expected.data.files = {"a.txt", "b c.txt"};
  EXPECT_EQ(options, expected);
}

TEST(ReadToml, EmptyTextSetsNothing) {
  EXPECT_EQ(read(""), ExampleOptions());
  EXPECT_EQ(read("# nothing\n[train]\n[train.schedule]\n"), ExampleOptions());
  EXPECT_EQ(read("\xEF\xBB\xBFseed = 2").seed, 2) << "a byte order mark is no part of the text";
}

TEST(ReadToml, TakesAnIntegerForAReal) {
  EXPECT_EQ(read("train.lr = 2").train.lr, 2.0);
  EXPECT_EQ(read("train.offset = -3").train.offset, -3.0);
}

TEST(ReadToml, ReadsIntegersToTheirLimits) {
  EXPECT_EQ(read("seed = 9223372036854775807").seed, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(read("seed = -9223372036854775808").seed, std::numeric_limits<int64_t>::min());
  EXPECT_THAT(toml_error("seed = 9223372036854775808"), StartsWith("x.toml:3:"));
}

TEST(ReadToml, SyntaxErrorsHaveTheirPlace) {
  EXPECT_THAT(toml_error("[train\nlr = 1"), StartsWith("x.toml:3:7: "));
  EXPECT_THAT(toml_error("seed = "), StartsWith("x.toml:3:8: "));
  EXPECT_THAT(toml_error("seed = 1\nseed = 2"), AllOf(StartsWith("x.toml:4:"), HasSubstr("'seed'")));
  EXPECT_THAT(toml_error("[train]\nlr = 1\n[train]\nlr = 2"), AllOf(StartsWith("x.toml:5:"), HasSubstr("train")));
  EXPECT_THAT(toml_error("train.device = \"\xff\""), StartsWith("x.toml:3:"));
}

TEST(ReadToml, UnknownKeysComeWithTheNearestValidOne) {
  EXPECT_EQ(toml_error("[train]\n lrr = 1"), "x.toml:4:2: unknown key 'train.lrr'; did you mean 'train.lr'?");
  EXPECT_EQ(toml_error("sede = 1"), "x.toml:3:1: unknown key 'sede'; did you mean 'seed'?");
  EXPECT_EQ(toml_error("[trian]\nlr = 1"), "x.toml:3:2: unknown key 'trian'; did you mean 'train'?");
  EXPECT_EQ(toml_error("[train.schedul]\nkind = 'cosine'"),
            "x.toml:3:8: unknown key 'train.schedul'; did you mean 'train.schedule'?");
  EXPECT_EQ(toml_error("train.schedule.warmup = 3"),
            "x.toml:3:16: unknown key 'train.schedule.warmup'; did you mean 'train.schedule.warmup_steps'?");
}

TEST(ReadToml, AKeyInTheWrongTableIsFound) {
  EXPECT_EQ(toml_error("lr = 1"), "x.toml:3:1: unknown key 'lr'; did you mean 'train.lr'?");
  EXPECT_EQ(toml_error("[train]\nseed = 1"), "x.toml:4:1: unknown key 'train.seed'; did you mean 'seed'?");
  EXPECT_EQ(toml_error("train.kind = 1"), "x.toml:3:7: unknown key 'train.kind'; did you mean 'train.schedule.kind'?");
  EXPECT_EQ(toml_error("schedule.kind = 1"), "x.toml:3:1: unknown key 'schedule'; did you mean 'train.schedule'?");
  EXPECT_EQ(toml_error("'train.lr' = 1"), "x.toml:3:1: unknown key '\"train.lr\"'; did you mean 'train.lr'?");
}

TEST(ReadToml, WhereNothingIsNearTheKeysAreListed) {
  EXPECT_EQ(toml_error("momentum = 1"),
            "x.toml:3:1: unknown key 'momentum'; the keys at the top are: seed, name, device, train, data");
  EXPECT_EQ(
      toml_error("[train]\nmomentum = 1"),
      "x.toml:4:1: unknown key 'train.momentum'; the keys of [train] are: lr, decay, clip, offset, amp, schedule");
  EXPECT_EQ(toml_error("'' = 1"),
            "x.toml:3:1: unknown key '\"\"'; the keys at the top are: seed, name, device, train, data");
}

TEST(ReadToml, WrongTypes) {
  EXPECT_EQ(toml_error("[train]\nlr = 'abc'"), "x.toml:4:6: train.lr must be a real > 0, got the string \"abc\"");
  EXPECT_EQ(toml_error("[train]\nlr = 'inf'"), "x.toml:4:6: train.lr must be a real > 0, got the string \"inf\"");
  EXPECT_EQ(toml_error("train.lr = true"), "x.toml:3:12: train.lr must be a real > 0, got the boolean true");
  EXPECT_EQ(toml_error("train.amp = 1"), "x.toml:3:13: train.amp must be true or false, got the integer 1");
  EXPECT_EQ(toml_error("train.amp = 'true'"), "x.toml:3:13: train.amp must be true or false, got the string \"true\"");
  EXPECT_EQ(toml_error("seed = 1.0"), "x.toml:3:8: seed must be an integer, got the real 1.0");
  EXPECT_EQ(toml_error("seed = 1e6"), "x.toml:3:8: seed must be an integer, got the real 1e+06");
  EXPECT_EQ(toml_error("seed = false"), "x.toml:3:8: seed must be an integer, got the boolean false");
  EXPECT_EQ(toml_error("seed = [1]"), "x.toml:3:8: seed must be an integer, got a list");
  EXPECT_EQ(toml_error("seed = 2024-01-01"), "x.toml:3:8: seed must be an integer, got a date");
  EXPECT_EQ(toml_error("seed = 10:00:00"), "x.toml:3:8: seed must be an integer, got a time");
  EXPECT_EQ(toml_error("seed = 2024-01-01T10:00:00Z"), "x.toml:3:8: seed must be an integer, got a date with time");
  EXPECT_EQ(toml_error("device = 3"), "x.toml:3:10: device must be cpu or cuda, got the integer 3");
  EXPECT_EQ(toml_error("data.files = 'a.txt'"),
            "x.toml:3:14: data.files must be a list of strings, got the string \"a.txt\"");
  EXPECT_EQ(toml_error("data.files = ['a', 3]"),
            "x.toml:3:20: data.files must be a list of strings, got the integer 3 at index 1");
  EXPECT_EQ(toml_error("data.files = [['a']]"),
            "x.toml:3:15: data.files must be a list of strings, got a list at index 0");
}

TEST(ReadToml, AString) {
  ExampleOptions options;
  EXPECT_EQ(error_of([&] { read_toml_text(options, "name = 5", "x.toml"); }),
            "x.toml:1:8: name must be a string, got the integer 5");
}

TEST(ReadToml, TablesAndValuesAreNotTakenForEachOther) {
  EXPECT_EQ(toml_error("[seed]\nx = 1"), "x.toml:3:1: seed must be an integer, got a table");
  EXPECT_EQ(toml_error("seed = {}"), "x.toml:3:8: seed must be an integer, got a table");
  EXPECT_EQ(
      toml_error("train = 3"),
      "x.toml:3:9: train must be a table with the keys lr, decay, clip, offset, amp, schedule; got the integer 3");
  EXPECT_EQ(toml_error("[[train]]\nlr = 1"),
            "x.toml:3:1: train must be a table with the keys lr, decay, clip, offset, amp, schedule; got a list");
}

TEST(ReadToml, OutOfRange) {
  EXPECT_EQ(toml_error("train.lr = 0"), "x.toml:3:12: train.lr must be a real > 0, got the integer 0");
  EXPECT_EQ(toml_error("train.lr = -1.5"), "x.toml:3:12: train.lr must be a real > 0, got the real -1.5");
  EXPECT_EQ(toml_error("train.decay = 1.0"), "x.toml:3:15: train.decay must be a real in [0, 1), got the real 1.0");
  EXPECT_EQ(toml_error("train.schedule.warmup_steps = 1001"),
            "x.toml:3:31: train.schedule.warmup_steps must be an integer in [0, 1000], got the integer 1001");
  EXPECT_EQ(toml_error("train.schedule.warmup_steps = -1"),
            "x.toml:3:31: train.schedule.warmup_steps must be an integer in [0, 1000], got the integer -1");
  EXPECT_EQ(read("train.decay = 0").train.decay, 0.0);
  EXPECT_EQ(read("train.schedule.warmup_steps = 1000").train.schedule.warmup_steps, 1000);
}

TEST(ReadToml, NoNanAndInfinitiesOnlyWhereTheRangeNamesThem) {
  EXPECT_EQ(toml_error("train.offset = nan"), "x.toml:3:16: train.offset must be a real, got the real nan");
  EXPECT_EQ(toml_error("train.offset = inf"), "x.toml:3:16: train.offset must be a real, got the real inf");
  EXPECT_EQ(toml_error("train.lr = inf"), "x.toml:3:12: train.lr must be a real > 0, got the real inf");
  EXPECT_EQ(toml_error("train.clip = nan"), "x.toml:3:14: train.clip must be a real in [0, inf], got the real nan");
  EXPECT_EQ(toml_error("train.clip = -inf"), "x.toml:3:14: train.clip must be a real in [0, inf], got the real -inf");
  ExampleOptions options;
  options.train.clip = 1;
  read_toml_text(options, "train.clip = inf", "x.toml");
  EXPECT_EQ(options.train.clip, std::numeric_limits<double>::infinity());
}

TEST(ReadToml, ChoicesAreListedAndTheNearestOffered) {
  EXPECT_EQ(toml_error("train.schedule.kind = 'cosin'"),
            "x.toml:3:23: train.schedule.kind must be constant, cosine or linear, got the string \"cosin\"; did you "
            "mean \"cosine\"?");
  EXPECT_EQ(toml_error("device = 'tpu-pod'"), "x.toml:3:10: device must be cpu or cuda, got the string \"tpu-pod\"");
}

TEST(ReadToml, TheFirstMistakeOfTheTextIsReported) {
  EXPECT_THAT(toml_error("zeta = 1\nalpha = 2"), StartsWith("x.toml:3:1: unknown key 'zeta'"));
  EXPECT_THAT(toml_error("[train]\nlr = 'a'\namp = 3"), StartsWith("x.toml:4:6: train.lr"));
}

TEST(ReadToml, DeepNestingIsAMistakeAndNoCrash) {
  EXPECT_THAT(toml_error("seed = " + std::string(100, '[') + std::string(100, ']')),
              StartsWith("x.toml:3:8: seed must be an integer"));
  EXPECT_THAT(toml_error("seed = " + std::string(100'000, '[')), StartsWith("x.toml:3:"));
}

TEST(ReadToml, LongTextsAreCutInMessages) {
  EXPECT_EQ(toml_error("device = '" + std::string(5000, 'x') + "'"),
            "x.toml:3:10: device must be cpu or cuda, got the string \"" + std::string(100, 'x') + "...\"");
}

class ReadTomlFile : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  const std::filesystem::path folder_ =
      std::filesystem::temp_directory_path() / ("options_read_test_" + std::to_string(std::random_device()()));
};

TEST_F(ReadTomlFile, ReadsAndNamesThePath) {
  const std::filesystem::path path = folder_ / "run.toml";
  std::ofstream(path) << "seed = 5\n";
  ExampleOptions options;
  read_toml_file(options, path);
  EXPECT_EQ(options.seed, 5);

  std::ofstream(path) << "seed = 6\n[train]\nlrr = 1\n";
  EXPECT_EQ(error_of([&] { read_toml_file(options, path); }),
            path.string() + ":3:1: unknown key 'train.lrr'; did you mean 'train.lr'?");
  EXPECT_EQ(options.seed, 5);
}

TEST_F(ReadTomlFile, AnEmptyFileSetsNothing) {
  std::ofstream(folder_ / "empty.toml").close();
  ExampleOptions options;
  read_toml_file(options, folder_ / "empty.toml");
  EXPECT_EQ(options, ExampleOptions());
}

TEST_F(ReadTomlFile, AMissingFileOrAFolderIsAnError) {
  ExampleOptions options;
  EXPECT_THAT(error_of([&] { read_toml_file(options, folder_ / "none.toml"); }),
              AllOf(HasSubstr((folder_ / "none.toml").string()), HasSubstr("No such file")));
  EXPECT_THAT(error_of([&] { read_toml_file(options, folder_); }), HasSubstr(folder_.string()));
}

TEST(SetOption, ReadsEachType) {
  EXPECT_EQ(with("seed=42").seed, 42);
  EXPECT_EQ(with("seed=-1_000").seed, -1000);
  EXPECT_EQ(with("seed=0x10").seed, 16);
  EXPECT_EQ(with("train.lr=1e-3").train.lr, 1e-3);
  EXPECT_EQ(with("train.lr=5").train.lr, 5.0);
  EXPECT_EQ(with("train.clip=2.5").train.clip, 2.5);
  EXPECT_TRUE(with("train.amp=true").train.amp);
  EXPECT_EQ(with("device=cuda").device, "cuda");
  EXPECT_EQ(with("train.schedule.kind=linear").train.schedule.kind, Schedule::kLinear);
  EXPECT_EQ(with(" seed = 3 ").seed, 3);
}

TEST(SetOption, TextNeedsNoQuotes) {
  EXPECT_EQ(with("name=my run").name, "my run");
  EXPECT_EQ(with("name=a=b").name, "a=b") << "the first = divides";
  EXPECT_EQ(with("name=").name, "");
  EXPECT_EQ(with("name=true").name, "true");
  EXPECT_EQ(with("name=5").name, "5");
  EXPECT_EQ(with("name=x # y").name, "x # y");
  EXPECT_EQ(with("name=C:\\new").name, "C:\\new");
  EXPECT_EQ(with("name=größe").name, "größe");
  EXPECT_EQ(with("name=[a]").name, "[a]");
}

TEST(SetOption, QuotedTextIsReadAsToml) {
  EXPECT_EQ(with(R"(name=" a\tb ")").name, " a\tb ");
  EXPECT_EQ(with("name='C:\\new'").name, "C:\\new");
  EXPECT_EQ(with("device='cuda'").device, "cuda");
  EXPECT_EQ(with(R"(name="a" and "b")").name, R"("a" and "b")") << "not one quoted text";
  EXPECT_EQ(with("name='t is").name, "'t is");
}

TEST(SetOption, Lists) {
  EXPECT_THAT(with("data.files=a.txt").data.files, ElementsAre("a.txt"));
  EXPECT_THAT(with("data.files=a.txt, b c.txt,*.md").data.files, ElementsAre("a.txt", "b c.txt", "*.md"));
  EXPECT_THAT(with(R"(data.files=["a,b", ''])").data.files, ElementsAre("a,b", ""));
  EXPECT_THAT(with("data.files=[ab].txt").data.files, ElementsAre("[ab].txt"));
  EXPECT_THAT(with("data.files=[]").data.files, IsEmpty());
  ExampleOptions options;
  options.data.files = {"x"};
  set_option(options, "data.files=");
  EXPECT_THAT(options.data.files, IsEmpty());
  EXPECT_EQ(set_error("data.files=a,,b"),
            "--set: data.files has an empty item in \"a,,b\"; an empty text is given as [\"\"]");
  EXPECT_THAT(set_error("data.files=a,"), HasSubstr("empty item"));
  EXPECT_EQ(set_error("data.files=[1]"), "--set: data.files must be a list of strings, got the integer 1 at index 0");
  EXPECT_EQ(set_error("data.files=[a, b]"), "--set: data.files must be a list of strings, got the string \"[a, b]\"");
}

TEST(SetOption, UnknownKeys) {
  EXPECT_EQ(set_error("train.lrr=1"), "--set: unknown key 'train.lrr'; did you mean 'train.lr'?");
  EXPECT_EQ(set_error("trian.lrr=1"), "--set: unknown key 'trian.lrr'; did you mean 'train.lr'?");
  EXPECT_EQ(set_error("lr=1"), "--set: unknown key 'lr'; did you mean 'train.lr'?");
  EXPECT_EQ(set_error("train.momentum=1"),
            "--set: unknown key 'train.momentum'; the keys of [train] are: lr, decay, clip, offset, amp, schedule");
  EXPECT_EQ(set_error("optimizer.momentum=1"),
            "--set: unknown key 'optimizer.momentum'; the keys at the top are: seed, name, device, train, data");
  EXPECT_THAT(set_error("train.=1"), HasSubstr("unknown key 'train.'"));
  EXPECT_THAT(set_error(".lr=1"), HasSubstr("unknown key '.lr'; did you mean 'train.lr'?"));
  EXPECT_THAT(set_error("seed.x=1"), HasSubstr("unknown key 'seed.x'"));
}

TEST(SetOption, NoAssignment) {
  EXPECT_EQ(set_error("train.lr"), "--set: expected key=value, got \"train.lr\"");
  EXPECT_EQ(set_error(""), "--set: expected key=value, got \"\"");
  EXPECT_EQ(set_error(" =3"), "--set: expected key=value, got \" =3\"");
}

TEST(SetOption, BadValues) {
  EXPECT_EQ(set_error("train=3"),
            "--set: train is a table, not a value; its keys are: lr, decay, clip, offset, amp, schedule");
  EXPECT_EQ(set_error("train.lr=abc"), "--set: train.lr must be a real > 0, got the string \"abc\"");
  EXPECT_EQ(set_error("train.lr="), "--set: train.lr must be a real > 0, got the string \"\"");
  EXPECT_EQ(set_error("train.lr=1 2"), "--set: train.lr must be a real > 0, got the string \"1 2\"");
  EXPECT_EQ(set_error("train.lr=1, 2"), "--set: train.lr must be a real > 0, got the string \"1, 2\"");
  EXPECT_EQ(set_error("train.lr=1 # one"), "--set: train.lr must be a real > 0, got the string \"1 # one\"");
  EXPECT_EQ(set_error("train.lr=1\nseed=2"), "--set: train.lr must be a real > 0, got the string \"1\\nseed=2\"");
  EXPECT_EQ(set_error("train.lr=1]\nseed=[2"), "--set: train.lr must be a real > 0, got the string \"1]\\nseed=[2\"");
  EXPECT_EQ(set_error("train.lr=-1"), "--set: train.lr must be a real > 0, got the integer -1");
  EXPECT_EQ(set_error("train.lr=nan"), "--set: train.lr must be a real > 0, got the real nan");
  EXPECT_EQ(set_error("train.lr=inf"), "--set: train.lr must be a real > 0, got the real inf");
  EXPECT_EQ(set_error("seed=1.5"), "--set: seed must be an integer, got the real 1.5");
  EXPECT_EQ(set_error("seed=true"), "--set: seed must be an integer, got the boolean true");
  EXPECT_EQ(set_error("train.amp=yes"), "--set: train.amp must be true or false, got the string \"yes\"");
  EXPECT_EQ(set_error("train.schedule.kind=cosin"),
            "--set: train.schedule.kind must be constant, cosine or linear, got the string \"cosin\"; did you mean "
            "\"cosine\"?");
  EXPECT_EQ(set_error("name=a\xff"), "--set: name must be UTF-8 text, got \"a\xEF\xBF\xBD\"");
  EXPECT_EQ(set_error("data.files=a,\xff"), "--set: data.files must be UTF-8 text, got \"\xEF\xBF\xBD\"");
}

}  // namespace
}  // namespace adder::core
