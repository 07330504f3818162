#include <sstream>

#include "cli/commands.h"
#include "tests/cli/picture.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"

namespace adder::cli {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr std::string_view kRun = R"({"step":10,"tokens":1000,"loss":2.5,"lr":1e-3}
{"step":10,"eval_loss":2.6,"eval_accuracy":0.1}
{"step":20,"tokens":2000,"loss":1.5,"lr":2e-3}

{"step":30,"tokens":3000,"loss":0.5,"lr":1e-3}
{"step":35,"eval_loss":0.6,"eval_accuracy":0.9}
)";

class Plot : public testing::Test {
 protected:
  Plot() {
    for (const char* run : {"first", "second"}) {
      std::filesystem::create_directory(folder_ / run);
      folder_.write(std::string(run) + "/metrics.jsonl", kRun);
    }
  }

  std::string path(std::string_view name) const { return (folder_ / name).string(); }

  // Runs `adder plot` with these arguments and `--out`.
  void plot(std::vector<std::string> arguments) const {
    CLI::App app;
    add_plot_command(app);
    arguments.insert(arguments.begin(), {"plot"});
    arguments.insert(arguments.end(), {"--out", out_});
    std::reverse(arguments.begin(), arguments.end());
    app.parse(arguments);
  }

  std::string error(std::vector<std::string> arguments) const {
    return error_of([&] { plot(std::move(arguments)); });
  }

  // How many of the first four colours of lines the picture has.
  int64_t lines() const {
    const Picture picture(out_);
    int64_t count = 0;
    for (const uint32_t color : {kBlue, kOrange, kGreen, kPink}) count += !picture.columns(color).empty();
    return count;
  }

  std::string picture_of(std::vector<std::string> arguments) const {
    plot(std::move(arguments));
    std::ostringstream bytes;
    bytes << std::ifstream(out_, std::ios::binary).rdbuf();
    return bytes.str();
  }

  data::TemporaryFolder folder_;
  std::string out_ = path("plot.png");
};

TEST_F(Plot, DrawsALineForEachRunAndFigure) {
  plot({path("first")});
  EXPECT_EQ(lines(), 2);
  plot({path("first"), path("second")});
  EXPECT_EQ(lines(), 4);
  plot({path("first"), "--y", "eval_accuracy"});
  EXPECT_EQ(lines(), 1);
  plot({path("first/metrics.jsonl"), path("second/"), "--y", "lr", "--label", "a", "--label", "b", "--title", "t"});
  EXPECT_EQ(lines(), 2);
}

TEST_F(Plot, DefaultsToWhatTheRunsHave) {
  folder_.write("second/metrics.jsonl", "{\"step\":1,\"loss\":2}\n{\"step\":2,\"loss\":1}");
  plot({path("first"), path("second")});
  EXPECT_EQ(lines(), 3);
  plot({path("second")});
  EXPECT_EQ(lines(), 1);
}

TEST_F(Plot, PutsEvaluationsAtTheirTokens) {
  // The evaluation at step 35 comes after the last line that tells tokens: 3500 of them.
  folder_.write("told.jsonl", R"({"step":10,"tokens":1000,"loss":1,"eval_loss":2.6}
{"step":35,"tokens":3500,"loss":1,"eval_loss":0.6}
)");
  const std::vector<std::string> rest = {"--y", "eval_loss", "--x", "tokens", "--title", "t"};
  std::vector<std::string> told = {path("told.jsonl")}, derived = {path("first")};
  told.insert(told.end(), rest.begin(), rest.end());
  derived.insert(derived.end(), rest.begin(), rest.end());
  EXPECT_EQ(picture_of(told), picture_of(derived));
  EXPECT_NE(picture_of({path("first"), "--y", "eval_loss", "--title", "t"}), picture_of(derived));
}

TEST_F(Plot, SmoothsWhatIsLoggedButNotEvaluations) {
  folder_.write("means.jsonl", R"({"step":10,"loss":2}
{"step":20,"loss":1.5}
{"step":30,"loss":1}
)");
  EXPECT_EQ(picture_of({path("first"), "--y", "loss", "--smooth", "3", "--title", "t"}),
            picture_of({path("means.jsonl"), "--y", "loss", "--title", "t"}));
  EXPECT_EQ(picture_of({path("first"), "--y", "eval_loss", "--smooth", "3"}),
            picture_of({path("first"), "--y", "eval_loss"}));
}

TEST_F(Plot, ChangesTheAxes) {
  const std::string plain = picture_of({path("first")});
  for (const auto& option : {"--log-x", "--log-y", "--y-min=-1", "--y-max=5"})
    EXPECT_NE(picture_of({path("first"), option}), plain) << option;
}

TEST_F(Plot, ValuesThatWereNotFiniteAreGaps) {
  folder_.write("gap.jsonl", R"({"step":1,"loss":1}
{"step":2,"loss":1}
{"step":3,"loss":null}
{"step":4,"loss":1}
{"step":5,"loss":1}
)");
  plot({path("gap.jsonl"), "--smooth", "3"});
  const auto columns = Picture(out_).columns(kBlue);
  EXPECT_FALSE(columns.contains(950));
  EXPECT_LT(columns.size(), 1100);
  EXPECT_GT(columns.size(), 700);
}

TEST_F(Plot, IgnoresALastLineThatIsBeingWritten) {
  const std::string whole = picture_of({path("first")});
  const std::string_view last = R"({"step":40,"loss":0.25})";
  for (const size_t size : {size_t{0}, size_t{1}, size_t{9}, last.size() - 1}) {
    folder_.write("first/metrics.jsonl", std::string(kRun) + std::string(last.substr(0, size)));
    EXPECT_EQ(picture_of({path("first")}), whole) << size;
  }
  folder_.write("first/metrics.jsonl", std::string(kRun) + std::string(last));
  EXPECT_NE(picture_of({path("first")}), whole);
}

TEST_F(Plot, NamesTheBrokenLine) {
  const auto with = [&](std::string_view line) {
    const auto file = folder_.write("broken.jsonl", std::string(kRun) + std::string(line));
    return error({file.string()});
  };
  EXPECT_THAT(with("{\"step\":40,\n"), HasSubstr(path("broken.jsonl") + ":7: is not valid JSON"));
  EXPECT_THAT(with(std::string("\0\0\n", 3)), HasSubstr(path("broken.jsonl") + ":7: is not valid JSON"));
  EXPECT_EQ(with("[1]\n"), path("broken.jsonl") + ":7: must be a JSON object, got array");
  EXPECT_EQ(with("{\"loss\":1}\n"), path("broken.jsonl") + ":7: must have a number \"step\"");
  EXPECT_EQ(with("{\"step\":\"1\"}\n"), path("broken.jsonl") + ":7: must have a number \"step\"");
}

TEST_F(Plot, NamesWhatIsMissing) {
  EXPECT_EQ(error({path("third")}), "cannot open '" + path("third") + "': No such file or directory");
  std::filesystem::create_directory(folder_ / "third");
  EXPECT_THAT(error({path("first"), path("third")}), HasSubstr(path("third/metrics.jsonl")));
  folder_.write("third/metrics.jsonl", "");
  EXPECT_EQ(error({path("third")}), path("third/metrics.jsonl") + ": has no metrics yet");
  folder_.write("third/metrics.jsonl", "{\"st");
  EXPECT_EQ(error({path("third")}), path("third/metrics.jsonl") + ": has no metrics yet");
  EXPECT_EQ(error({path("first"), "--y", "eval_los"}),
            path("first/metrics.jsonl") +
                ": has no 'eval_los'; did you mean 'eval_loss'? it has tokens, loss, lr, eval_loss, eval_accuracy");
  EXPECT_EQ(error({path("first"), "--y", "perplexity"}),
            path("first/metrics.jsonl") + ": has no 'perplexity'; it has tokens, loss, lr, eval_loss, eval_accuracy");
  folder_.write("third/metrics.jsonl", "{\"step\":1,\"grad_norm\":2}\n");
  EXPECT_EQ(error({path("third")}), path("third/metrics.jsonl") + ": has no 'loss'; it has grad_norm");
  EXPECT_EQ(error({path("third"), "--y", "grad_norm", "--x", "tokens"}),
            path("third/metrics.jsonl") + ": has no 'tokens'; it has grad_norm");
  EXPECT_FALSE(std::filesystem::exists(out_));
}

TEST_F(Plot, RefusesBadArguments) {
  EXPECT_EQ(error({path("first"), "--label", "a", "--label", "b"}),
            "--label: must be given once for each run: 2 for 1");
  EXPECT_THROW(plot({path("first"), "--x", "time"}), CLI::ValidationError);
  EXPECT_THROW(plot({path("first"), "--smooth", "0"}), CLI::ValidationError);
  EXPECT_THROW(plot({}), CLI::RequiredError);
  out_ = path("plot.jpg");
  EXPECT_EQ(error({path("first")}), "--out: must end in .png, got '" + out_ + "'");
}

}  // namespace
}  // namespace adder::cli
