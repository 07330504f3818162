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
#include <string>
#include <thread>
#include <vector>

#include "adder/core/options_io.h"
#include "adder/data/token_file.h"
#include "adder/train/options.h"
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
    std::ofstream(folder_ / "run.toml") << kSmallRun << R"(steps = 60
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
  // A run on text, as bytes.
  void train_on_text(const std::string& name, const std::string& more = "") const {
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 200; ++i) text << "the quick brown fox " << i << "\n";
    text.close();
    const Outcome trained = run(train(name) +
                                " --set task.name=language_model --set model.vocab_size=256 --set train.steps=20 "
                                "--set task.language_model.length=32 --set task.language_model.files=" +
                                (folder_ / "text.txt").string() + more);
    ASSERT_EQ(trained.code, 0) << trained.output;
  }
  // The step of the newest, 0 where there is none.
  static int64_t last_checkpoint(const fs::path& folder) {
    int64_t last = 0;
    std::error_code error;  // of a folder that changes meanwhile
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.starts_with("step-")) last = std::max<int64_t>(last, std::stoll(name.substr(5)));
    }
    return last;
  }

  fs::path folder_;
};

void silence(FILE* stream) {
  if (std::freopen("/dev/null", "w", stream) == nullptr) std::abort();
}

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

// Killed at ten random moments, each after more checkpoints than the last, and resumed each time: the same weights, to
// the bit, as those of a run that was left alone.
TEST_F(Program, KilledRunsEndBitEqual) {
  constexpr int64_t kSteps = 3000;
  const std::string steps = "train.steps=" + std::to_string(kSteps);
  ASSERT_EQ(run(train("calm") + " --set train.eval_every=0 --set " + steps).code, 0);
  std::mt19937 random(std::random_device{}());
  int64_t reached = 0;
  for (int kill = 0; kill < 10; ++kill) {
    const pid_t child = ::fork();
    if (child == 0) {
      silence(stderr);
      silence(stdout);
      const std::string set = "train.out=" + out("killed");
      ::execl(kProgram, kProgram, "train", config().c_str(), "--resume", "--set", set.c_str(), "--set", steps.c_str(),
              "--set", "train.eval_every=0", nullptr);
      ::_exit(127);
    }
    const int64_t wanted = reached + 7 * (1 + static_cast<int64_t>(random() % 8));
    for (int i = 0; i < 60000 && last_checkpoint(out("killed")) < wanted; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 10000));
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the run had ended before kill " << kill;
    const int64_t now = last_checkpoint(out("killed"));
    EXPECT_GT(now, reached);
    reached = now;
  }
  EXPECT_LT(reached, kSteps);
  const Outcome last = run(train("killed") + " --resume --set train.eval_every=0 --set " + steps);
  ASSERT_EQ(last.code, 0) << last.output;
  EXPECT_THAT(last.output, HasSubstr("resuming from " + out("killed") + "/step-"));
  EXPECT_EQ(last_weights("calm", "step-00003000"), last_weights("killed", "step-00003000"));
}

TEST_F(Program, InterruptSavesAndLeaves) {
  const pid_t child = ::fork();
  if (child == 0) {
    silence(stderr);
    silence(stdout);
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
    silence(stderr);
    silence(stdout);
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

// Documents of a token file, with the state carried from window to window and beginning anew at each document.
TEST_F(Program, TrainsOnATokenFile) {
  const std::string tokens = out("tokens.bin");
  data::write_token_file(tokens, 8, [](data::TokenWriter& writer) {
    for (int64_t document = 0; document < 60; ++document) {
      writer.begin_document();
      for (int64_t i = 0; i < 20 + document % 7; ++i) writer.append(std::vector<int64_t>{(i + document) % 8});
    }
  });
  for (const char* windows : {"random", "carried"}) {
    const Outcome trained =
        run(train(windows) + " --set task.name=language_model --set task.language_model.token_file=" + tokens +
            " --set task.language_model.length=16 --set task.language_model.reset_at_documents=true"
            " --set train.steps=120 --set task.language_model.windows=" +
            windows);
    ASSERT_EQ(trained.code, 0) << trained.output;
    const Outcome evaluated = run("eval " + out(windows) + " --json");
    ASSERT_EQ(evaluated.code, 0) << evaluated.output;
    // Each token follows from the one before it, all but the first of a document: 8 are equally likely at first.
    EXPECT_LT(nlohmann::json::parse(evaluated.output)["loss"].get<double>(), 1.5) << windows;
  }
}

TEST_F(Program, DryRunTellsAndLeavesNothing) {
  const Outcome outcome = run(train("run") + " --dry-run");
  ASSERT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("noise = 12"));
  EXPECT_THAT(outcome.output, HasSubstr("# parameters: "));
  EXPECT_THAT(outcome.output, HasSubstr("# expected memory: "));
  EXPECT_FALSE(fs::exists(out("run")));
}

TEST_F(Program, DryRunCountsTheParametersOfTheModel) {
  const std::vector<std::vector<std::string>> choices = {
      {},
      {"mixer.complex=true"},
      {"mixer.complex=true", "mixer.selective_B=false", "mixer.selective_C=false", "mixer.A_init=random"},
      {"mixer.selective_B=false", "mixer.dt_rank=none"},
      {"mixer.selective_B=false", "mixer.selective_C=false", "mixer.dt_rank=none", "mixer.conv_bias=false"},
      {"mixer.bias=true", "mixer.dt_rank=3", "norm=layer"},
      {"tie_embeddings=false", "vocab_size=21", "n_layer=3", "d_model=20"},
      {"mixer.d_state=5", "mixer.d_conv=3", "mixer.expand=3", "pad_vocab_size_multiple=5"}};
  for (const std::vector<std::string>& choice : choices) {
    train::RunConfig options;
    core::read_toml_file(options, config());
    std::string arguments = "train --dry-run";
    for (const std::string& assignment : choice) {
      core::set_option(options, "model." + assignment);
      arguments += " --set model." + assignment;
    }
    const int64_t expected = models::MambaLM(options.model)->parameter_count();
    const Outcome outcome = run(arguments + " " + config());  // after the options: each of them takes one value
    ASSERT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("# parameters: " + std::to_string(expected) + " (")) << arguments;
  }
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
  expect("generate " + out("run") + " --prompt hello", "the model must have at least 256 tokens, got 8");
}

TEST_F(Program, GeneratesTheSameTextForASeed) {
  train_on_text("text");
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

TEST_F(Program, GeneratesSamplesOfEachPrompt) {
  train_on_text("text");
  // What CLI11 would take for lists is text.
  const std::vector<std::string> prompts = {"the ", "[a, b]", "{}"};
  std::string generate = "generate " + out("text") + " --samples 2 --dtype bfloat16 --set max_tokens=8 --set seed=3";
  for (const std::string& prompt : prompts) generate += " --prompt '" + prompt + "'";
  const Outcome outcome = run(generate, "", "2>/dev/null");
  ASSERT_EQ(outcome.code, 0) << run(generate).output;
  EXPECT_EQ(outcome.output, run(generate + " --quiet").output);
  size_t at = 0;
  std::vector<std::string> rows;
  for (size_t i = 0; i < 6; ++i) {
    const std::string head = "=== " + std::to_string(i + 1) + " ===\n" + prompts[i / 2];
    ASSERT_EQ(outcome.output.substr(at, head.size()), head);
    rows.push_back(outcome.output.substr(at + head.size(), 8));
    at += head.size() + 8 + 1;  // the tokens and a line's end
  }
  EXPECT_EQ(outcome.output.size(), at);
  EXPECT_NE(rows[0], rows[1]);
  EXPECT_THAT(run(generate).output, HasSubstr("generated: 48 tokens"));
}

TEST_F(Program, GeneratesBytesWithAModelOfMoreTokens) {
  train_on_text("text", " --set model.vocab_size=300");
  // Hot enough to ask for the tokens that are no bytes.
  const Outcome outcome =
      run("generate " + out("text") + " --prompt a --set max_tokens=100 --set temperature=1000 --set seed=1");
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("generated: 100 tokens"));
}

TEST_F(Program, BenchChecksAndMeasuresEachCase) {
  const std::string sizes = "--batch 2 --length 8 ", model = "--d-model 16 --n-layer 2 --vocab 32 --batch 2 ";
  const std::vector<std::string> times = {"forward_ms", "backward_ms", "forward_backward_ms"};
  struct Case {
    std::string arguments;
    std::vector<std::string> sizes, figures;
  };
  const std::vector<Case> cases = {
      {"scan " + sizes + "--channels 4 --state 3", {"batch", "length", "channels", "state"}, times},
      {"conv " + sizes + "--channels 4 --width 3", {"batch", "length", "channels", "width"}, times},
      {"train " + model + "--length 8",
       {"d_model", "n_layer", "vocab", "batch", "length"},
       {"tokens_per_s", "peak_bytes"}},
      {"decode " + model + "--prompt 5 --tokens 4",
       {"d_model", "n_layer", "vocab", "batch", "prompt", "tokens"},
       {"prompt_tokens_per_s", "decode_tokens_per_s", "total_tokens_per_s"}}};
  for (const Case& c : cases) {
    for (const std::string dtype : {"float32", "bfloat16"}) {
      const Outcome outcome = run("bench " + c.arguments + " --dtype " + dtype + " --device cpu --threads 1 --json");
      ASSERT_EQ(outcome.code, 0) << outcome.output;
      const auto json = nlohmann::json::parse(outcome.output);
      EXPECT_EQ(json["case"], c.arguments.substr(0, c.arguments.find(' ')));
      EXPECT_EQ(json["dtype"], dtype);
      EXPECT_EQ(json["device"], "cpu");
      EXPECT_EQ(json["threads"], 1);
      for (const std::string& name : c.sizes) {
        std::string flag = "--" + name + " ";
        std::replace(flag.begin(), flag.end(), '_', '-');
        EXPECT_EQ(json.at(name), std::stoi(c.arguments.substr(c.arguments.find(flag) + flag.size()))) << name;
      }
      for (const std::string& name : c.figures) EXPECT_GT(json.at(name).get<double>(), 0) << name;
      EXPECT_GT(json.at("error").get<double>(), 0);
    }
  }
  EXPECT_THAT(run("bench conv --length 8 --channels 4").output, HasSubstr("forward_backward_ms "));
}

TEST_F(Program, DoctorFindsAllWell) {
  const Outcome outcome = run("doctor");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("LibTorch   "));
  EXPECT_THAT(outcome.output, HasSubstr("self-test  "));
  EXPECT_THAT(outcome.output, HasSubstr("all well\n"));
}

}  // namespace
}  // namespace adder::tests
