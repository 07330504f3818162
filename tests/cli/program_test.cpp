// The program as its users run it: exit codes, messages, and what it leaves behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/cli/program_runner.h"

namespace adder::tests {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Program : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("adder-program-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "run.toml") << R"([task]
name = "selective_copying"
[task.selective_copying]
noise = 12
tokens = 3
vocab_size = 8
evaluation_sequences = 20
[model]
d_model = 16
n_layer = 2
vocab_size = 8
[train]
steps = 60
batch = 4
eval_every = 20
checkpoint_every = 7
)";
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string config() const { return (folder_ / "run.toml").string(); }
  std::string out(const std::string& name) const { return (folder_ / name).string(); }
  std::string train(const std::string& name) const { return "train " + config() + " --set train.out=" + out(name); }
  std::string last_weights(const std::string& name, const std::string& step) const {
    return contents(fs::path(out(name)) / step / "model.safetensors") +
           contents(fs::path(out(name)) / step / "training.safetensors");
  }

  fs::path folder_;
};

TEST_F(Program, TrainsEvaluatesAndPlots) {
  const Outcome trained = run(train("run"));
  ASSERT_EQ(trained.code, 0) << trained.output;
  EXPECT_THAT(trained.output, HasSubstr("finished after 60 steps"));
  const Outcome evaluated = run("eval " + out("run") + " --json");
  ASSERT_EQ(evaluated.code, 0) << evaluated.output;
  const auto json = nlohmann::json::parse(evaluated.output);
  EXPECT_EQ(json["step"], 60);
  EXPECT_EQ(json["targets"], 60);
  EXPECT_EQ(run("eval " + out("run") + " --best").code, 0);
  EXPECT_EQ(run("plot " + out("run") + " --out " + out("plot.png")).code, 0);
  EXPECT_EQ(contents(out("plot.png")).substr(1, 3), "PNG");
}

// Killed at ten random moments, resumed each time: the same weights, to the bit, as a run that was left alone.
TEST_F(Program, KilledRunsEndBitEqual) {
  ASSERT_EQ(run(train("calm") + " --set train.steps=400").code, 0);
  std::mt19937 random(std::random_device{}());
  for (int kills = 0; kills < 10; ++kills) {
    const pid_t child = ::fork();
    if (child == 0) {
      std::freopen("/dev/null", "w", stderr);
      std::freopen("/dev/null", "w", stdout);
      const std::string set = "train.out=" + out("killed");
      ::execl(kProgram, kProgram, "train", config().c_str(), "--resume", "--set", set.c_str(), "--set",
              "train.steps=400", nullptr);
      ::_exit(127);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200 + random() % 900));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
  }
  const Outcome last = run(train("killed") + " --resume --set train.steps=400");
  ASSERT_EQ(last.code, 0) << last.output;
  EXPECT_EQ(last_weights("calm", "step-00000400"), last_weights("killed", "step-00000400"));
}

TEST_F(Program, InterruptSavesAndLeaves) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    std::freopen("/dev/null", "w", stdout);
    const std::string set = "train.out=" + out("run");
    ::execl(kProgram, kProgram, "train", config().c_str(), "--set", set.c_str(), "--set", "train.steps=100000", "--set",
            "train.checkpoint_every=0", nullptr);
    ::_exit(127);
  }
  for (int i = 0; i < 600 && !fs::exists(fs::path(out("run")) / "metrics.jsonl"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  ::kill(child, SIGINT);
  int status = 0;
  ::waitpid(child, &status, 0);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGINT);
  EXPECT_EQ(run("eval " + out("run")).code, 0);
}

TEST_F(Program, TwoRunsInOneFolderAreRefused) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::freopen("/dev/null", "w", stderr);
    std::freopen("/dev/null", "w", stdout);
    const std::string set = "train.out=" + out("run");
    ::execl(kProgram, kProgram, "train", config().c_str(), "--set", set.c_str(), "--set", "train.steps=100000",
            nullptr);
    ::_exit(127);
  }
  for (int i = 0; i < 600 && !fs::exists(fs::path(out("run")) / "metrics.jsonl"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const Outcome second = run(train("run") + " --resume");
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(second.code, 1);
  EXPECT_THAT(second.output, HasSubstr("in use by another run"));
}

TEST_F(Program, DryRunTellsAndLeavesNothing) {
  const Outcome outcome = run(train("run") + " --dry-run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("noise = 12"));
  EXPECT_THAT(outcome.output, HasSubstr("# parameters: "));
  EXPECT_THAT(outcome.output, HasSubstr("# expected memory: "));
  EXPECT_FALSE(fs::exists(out("run")));
}

TEST_F(Program, BadInputGetsOneClearMessage) {
  const auto expect = [&](const std::string& arguments, const std::string& text) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 1) << arguments << ": " << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(text)) << arguments;
    EXPECT_EQ(std::count(outcome.output.begin(), outcome.output.end(), '\n'), 1) << outcome.output;
  };
  expect(train("run") + " --set train.optimizer.lrr=1",
         "unknown key 'train.optimizer.lrr'; did you mean 'train.optimizer.lr'?");
  expect(train("run") + " --set train.steps=many", "train.steps must be");
  expect(train("run") + " --set train.batch=0", "train.batch must be");
  expect("train /nowhere.toml", "/nowhere.toml");
  expect("eval " + out("nothing"), "nothing");
  expect("generate " + config(), "run.toml");
  EXPECT_FALSE(fs::exists(out("run")));
  ASSERT_EQ(run(train("run") + " --set train.steps=5").code, 0);
  expect(train("run"), "holds a run already");
  expect("generate " + out("run") + " --prompt hello", "the model must have 256 tokens, got 8");
}

TEST_F(Program, GeneratesTheSameTextForASeed) {
  std::ofstream text(folder_ / "text.txt");
  for (int i = 0; i < 200; ++i) text << "the quick brown fox " << i << "\n";
  text.close();
  const std::string sets =
      " --set task.name=language_model --set model.vocab_size=256 --set task.language_model.files=" +
      (folder_ / "text.txt").string() + " --set task.language_model.length=32 --set train.steps=20";
  ASSERT_EQ(run(train("text") + sets).code, 0);
  const std::string generate = "generate " + out("text") + " --prompt 'the ' --set max_tokens=40 --set seed=3 --quiet";
  const Outcome once = run(generate), again = run(generate);
  EXPECT_EQ(once.code, 0) << once.output;
  EXPECT_EQ(once.output, again.output);
  EXPECT_EQ(once.output.substr(0, 4), "the ");
  EXPECT_EQ(once.output.size(), 45);  // prompt, 40 bytes, a line's end
  EXPECT_NE(once.output,
            run("generate " + out("text") + " --prompt 'the ' --set max_tokens=40 --set seed=4 --quiet").output);
  EXPECT_THAT(run("eval " + out("text") + " --carry-state").output, HasSubstr("bits/byte"));
}

}  // namespace
}  // namespace adder::tests
