// What the program says to bad input: one clear message, an exit code that is not 0, and nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "adder/core/files.h"
#include "tests/cli/program_runner.h"

namespace adder::tests {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

// In arguments and messages "@" stands for the folder of the case. It holds run.toml, text.txt (1,040 bytes) and, where
// the arguments name them, the finished runs "copying" (8 tokens) and "bytes" (256), with checkpoints of steps 3 and 6.
struct Case {
  std::string name, arguments;
  std::vector<std::string> messages;
  std::vector<std::pair<std::string, std::string>> files = {};
  std::function<void(const fs::path&)> spoil = {};
};

const std::string kConfig = kSmallRun + R"(steps = 6
batch = 4
checkpoint_every = 3
threads = 1
)";
const std::string kTrain = "train @/run.toml --set train.out=@/out ";
const std::string kLanguage =
    "--set task.name=language_model --set task.language_model.length=16 --set model.vocab_size=256 ";
const std::string kFiles = "--set task.language_model.files=";
const std::string kTokenFile = kTrain + kLanguage + "--set task.language_model.token_file=@/tokens.bin ";

void put(const fs::path& path, std::string_view bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void cut(const fs::path& path) {
  fs::resize_file(path, fs::file_size(path) - 5);
}

void change(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = contents(path);
  text.replace(text.find(from), from.size(), to);
  put(path, text);
}

std::string filled(std::string text, const fs::path& folder) {
  for (size_t at = 0; (at = text.find('@', at)) != text.npos; at += folder.string().size())
    text.replace(at, 1, folder.string());
  return text;
}

// A file of uint16 tokens and what describes it.
std::vector<std::pair<std::string, std::string>> token_file(char token, int version = 1, int missing = 0) {
  constexpr int kCount = 400;
  std::string bytes;
  for (int i = 0; i < kCount - missing; ++i) bytes += {token, '\0'};
  const nlohmann::json sidecar = {{"format", "adder-tokens"}, {"version", version}, {"dtype", "uint16"},
                                  {"vocab_size", 8},          {"count", kCount},    {"documents", 0}};
  return {{"tokens.bin", bytes}, {"tokens.bin.json", sidecar.dump()}};
}

std::vector<Case> command_lines() {
  return {
      {"unknown_command", "trian @/run.toml", {"unknown command 'trian'; did you mean 'train'?"}},
      {"unknown_help", "nothing --help", {"unknown command 'nothing'; there are train, eval, "}},
      {"unknown_case", "bench scann --length 5", {"unknown bench case 'scann'; did you mean 'scan'?"}},
      {"unknown_flag", kTrain + "--foo", {"--foo"}},
      {"eval_dtype", "eval @/copying --dtype float64", {"--dtype: float64 not in {float32,bfloat16}"}},
      {"eval_batch", "eval @/copying --batch 0", {"--batch must be a whole number >= 1, got \"0\""}},
      {"eval_threads", "eval @/copying --threads x", {"--threads must be a whole number >= 0, got \"x\""}},
      {"many_threads", "eval @/copying --threads 99999999999999999999", {"--threads must be a whole number <= 4096"}},
      {"generate_samples", "generate @/bytes --samples 1.5", {"--samples must be a whole number >= 1, got \"1.5\""}},
      {"bench_length", "bench scan --length 0", {"--length must be a whole number >= 1, got \"0\""}},
      {"plot_y_min", "plot @/bytes --y-min low --out @/a.png", {"--y-min must be a number, got \"low\""}},
      {"carry_state", "eval @/copying --carry-state", {"--carry-state: only a language_model's windows follow"}},
      {"generate_dtype", "generate @/bytes --dtype int8", {"--dtype: int8 not in"}},
      {"bench_device", "bench scan --device cuda", {"--device: cuda not in {cpu}"}}};
}

std::vector<Case> configurations() {
  std::vector<Case> rows = {
      {"folder", "train @", {"cannot read '@': it is a folder"}},
      {"syntax", "train @/bad.toml", {"@/bad.toml:1:7: "}, {{"bad.toml", "[train\nsteps = 1\n"}}},
      {"not_text", "train @/bad.toml", {"@/bad.toml:1:1: ", "utf-8"}, {{"bad.toml", "\xff\xfe"}}},
      {"misspelt_key",
       "train @/bad.toml",
       {"@/bad.toml:2:1: unknown key 'train.stepz'; did you mean 'train.steps'?"},
       {{"bad.toml", "[train]\nstepz = 1\n"}}},
      {"out_is_a_file", "train @/run.toml --set train.out=@/text.txt", {"@/text.txt", "Not a directory"}},
  };
  const auto set = [&](const std::string& assignment, const std::vector<std::string>& messages) {
    rows.push_back({assignment.substr(0, 40), kTrain + "--set " + assignment, messages});
  };
  set("train.device=cuda", {"unknown key 'train.device'; the keys of [train] are: out, seed"});
  set("train.precision=float8",
      {"train.precision must be float32 or bfloat16, got the string \"float8\"; did you mean \"float32\"?"});
  set("model.tie_embeddings=yes", {"model.tie_embeddings must be true or false, got the string \"yes\""});
  set("train.optimizer.lr=-1", {"train.optimizer.lr must be a real > 0, got the integer -1"});
  set("train.out=", {"train.out"});
  set("model.vocab_size=7", {"model.vocab_size must be at least the task's 8 tokens, got 7"});
  set("model.vocab_size=7 --dry-run", {"model.vocab_size must be at least the task's 8 tokens, got 7"});
  set("model.mixer.dt_rank=lots", {"dt_rank must be \"auto\", \"none\" or a whole number >= 1, got \"lots\""});
  for (const std::string also : {"", " --dry-run"})
    set("model.mixer.dt_max=1e-4" + also, {"dt_max must not be below dt_min, got 0.0001 and 0.001"});
  // Sizes whose products no longer fit into 64 bits.
  for (const char* key :
       {"model.mixer.expand", "model.vocab_size", "task.selective_copying.tokens", "train.batch", "train.threads"})
    set(std::string(key) + "=4611686018427387904", {std::string(key) + " must be an integer in ["});
  return rows;
}

std::vector<Case> data_files() {
  const std::string train = kTrain + kLanguage + kFiles;
  const std::string gzip_head("\x1f\x8b\x08\0\0\0\0\0\x02\x03\x6d\xcf", 12);
  std::vector<Case> rows = {
      {"no_files", kTrain + kLanguage, {"give either files (text, as bytes) or token_file, got 0 files"}},
      {"missing", train + "@/text.txt,@/none.txt", {"cannot open '@/none.txt': No such file or directory"}},
      {"empty", train + "@/empty.txt", {"@/empty.txt: holds no data"}, {{"empty.txt", ""}}},
      {"folder", train + "@", {"cannot read '@' at byte 0: Is a directory"}},
      {"unreadable", train + "/proc/self/mem", {"cannot read '/proc/self/mem' at byte 0: Input/output error"}},
      {"cut", train + "@/cut.gz", {"@/cut.gz: ends too early, after byte 12"}, {{"cut.gz", gzip_head}}},
      {"small_vocabulary",
       train + "@/text.txt --set model.vocab_size=128",
       {"model.vocab_size must be at least the task's 256 tokens, got 128"}},
      {"too_short",
       train + "@/text.txt --set task.language_model.length=5000",
       {"windows of 5000 need a range of at least 5001 tokens, got 936"}},
      {"too_short_dry_run",
       train + "@/text.txt --set task.language_model.length=5000 --dry-run",
       {"windows of 5000 need a range of at least 5001 tokens, got 936"}},
      {"too_short_for_lanes",
       train + "@/text.txt --set task.language_model.length=500 --set task.language_model.windows=carried",
       {"4 lanes of windows of 500 need a range of at least 4 x 500 + 1 tokens, got 936"}},
      // Found before the training, not after it.
      {"nothing_held_out",
       train + "@/text.txt --set task.language_model.validation_fraction=0.0001",
       {"nothing is held out to evaluate on: 1 tokens with validation_fraction 0.0001"}},
      {"two_kinds", kTokenFile + kFiles + "@/text.txt", {"give either files", "got 1 files and token_file \"@"}},
      {"token_file_alone", kTokenFile, {"cannot open '@/tokens.bin.json'"}, {{"tokens.bin", "1234"}}},
      {"token_file_cut",
       kTokenFile,
       {"@/tokens.bin: must hold 400 uint16 tokens = 800 bytes, got 600"},
       token_file(1, 1, 100)},
      {"token_file_newer",
       kTokenFile,
       {"@/tokens.bin.json: version 2 was written by a newer program, this one reads version 1"},
       token_file(1, 2)},
      {"token_file_wide",
       kTokenFile + "--set model.vocab_size=4",
       {"model.vocab_size must be at least the task's 8 tokens, got 4"},
       token_file(1)}};
  for (const std::string format : {"xz", "gz", "zst"})
    rows.push_back({"plain_" + format,
                    train + "@/plain." + format,
                    {"@/plain." + format + ": not valid "},
                    {{"plain." + format, "a plain text, nothing compressed"}}});
  return rows;
}

std::vector<Case> checkpoints() {
  const auto damage = [](const char* file, auto how) {
    return [=](const fs::path& folder) { how(folder / "bytes" / "step-00000006" / file); };
  };
  const auto flip = [](const fs::path& path) {
    std::string bytes = contents(path);
    bytes[bytes.size() - 3] = static_cast<char>(bytes[bytes.size() - 3] ^ 4);
    put(path, bytes);
  };
  const std::string step = "@/bytes/step-00000006";
  return {
      {"missing", "eval @/none", {"@/none: there is no such folder"}},
      {"file", "generate @/text.txt", {"@/text.txt: must be a folder, but is a file"}},
      {"no_checkpoint", "eval @", {"@: is neither an Adder checkpoint"}},
      {"no_best",
       "eval @/bytes --best",
       {"@/bytes: has no checkpoint 'best'"},
       {},
       [](const fs::path& folder) { fs::remove_all(folder / "bytes" / "best"); }},
      {"model_cut",
       "eval " + step,
       {step + "/model.safetensors: must have ", ": is it cut off?"},
       {},
       damage("model.safetensors", cut)},
      {"model_changed",
       "generate " + step,
       {step + "/model.safetensors: damaged: its hash must be ", "damaged tensors (1 of "},
       {},
       damage("model.safetensors", flip)},
      {"model_missing",
       "generate " + step,
       {step + "/model.safetensors: is missing"},
       {},
       damage("model.safetensors", [](const fs::path& path) { fs::remove(path); })},
      {"document_cut",
       "eval " + step,
       {step + "/checkpoint.json: is not valid JSON"},
       {},
       damage("checkpoint.json", cut)},
      {"foreign",
       "generate " + step,
       {step + "/checkpoint.json: is no Adder checkpoint", "got \"pytorch\""},
       {},
       damage("checkpoint.json", [](const fs::path& path) { put(path, R"({"format": "pytorch"})"); })},
      {"newer",
       "eval " + step,
       {step + "/checkpoint.json: written by a newer version of Adder", "has version 2, this program reads up to 1"},
       {},
       damage("checkpoint.json", [](const fs::path& path) { change(path, "\"version\": 1", "\"version\": 2"); })},
      {"all_damaged",
       "train @/run.toml --resume --set train.out=@/copying",
       {"@/copying: none of its 2 checkpoints can be opened", "step-00000003", "step-00000006"},
       {},
       [](const fs::path& folder) {
         for (const char* name : {"step-00000003", "step-00000006"})
           cut(folder / "copying" / name / "model.safetensors");
       }},
      {"other_model",
       "train @/run.toml --resume --set train.out=@/copying --set model.n_layer=3",
       {"model.n_layer was 2, now it is 3"}},
      {"eval_empty_data",
       "eval @/bytes " + kFiles + "@/empty.txt",
       {"@/empty.txt: holds no data"},
       {{"empty.txt", ""}}},
      {"eval_nothing_held_out",
       "eval @/bytes --set task.language_model.validation_fraction=0",
       {"nothing is held out to evaluate on"}},
      {"eval_unknown_key",
       "eval @/bytes --set task.language_model.lenght=3",
       {"did you mean 'task.language_model.length'?"}},
      {"eval_other_task",
       "eval @/copying " + kFiles + "@/text.txt --set task.name=language_model",
       {"@/copying/step-00000006", "the model has 8 tokens, too few for the task's 256"}},
  };
}

std::vector<Case> prompts_and_plots() {
  return {
      {"no_start_token", "generate @/bytes --prompt '' --set start_token=-1", {"the prompt of row 0 is empty"}},
      {"start_token", "generate @/bytes --set start_token=300", {"start_token must be in the vocabulary [0, 256)"}},
      {"stop_token", "generate @/bytes --set stop_tokens=300", {"stop token 300 is outside the vocabulary [0, 256)"}},
      {"misspelt_key", "generate @/bytes --set temprature=1", {"did you mean 'temperature'?"}},
      {"missing_prompt", "generate @/bytes --prompt-file @/none.txt", {"@/none.txt"}},
      {"prompt_is_a_folder", "generate @/bytes --prompt-file @", {"cannot read '@': it is a folder"}},
      {"plot_missing", "plot @/none --out @/plot.png", {"cannot open '@/none': No such file or directory"}},
      {"plot_no_folder", "plot @/bytes --out @/none/plot.png", {"cannot create '@/none/plot.png'"}},
      {"plot_onto_a_folder", "plot @/bytes --out @/a.png", {"it is a folder"}, {}, [](const fs::path& folder) {
         fs::create_directory(folder / "a.png");
       }}};
}

// What root may do all the same.
std::vector<Case> permissions() {
  const auto forbid = [](const char* name) {
    return [=](const fs::path& folder) { fs::permissions(folder / name, fs::perms::owner_exec); };
  };
  return {{"config", "train @/run.toml", {"cannot open '@/run.toml': Permission denied"}, {}, forbid("run.toml")},
          {"data",
           kTrain + kLanguage + kFiles + "@/text.txt",
           {"cannot open '@/text.txt': Permission denied"},
           {},
           forbid("text.txt")},
          {"out",
           "train @/run.toml --set train.out=@/closed/out",
           {"@/closed/out", "Permission denied"},
           {},
           [](const fs::path& folder) {
             fs::create_directory(folder / "closed");
             fs::permissions(folder / "closed", fs::perms::owner_read | fs::perms::owner_exec);
           }}};
}

// Every path below the folder with its bytes; of a run's lock only that it is there, since it holds a process's number.
std::map<std::string, std::string> snapshot(const fs::path& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    std::ostringstream bytes;
    if (entry.is_regular_file() && entry.path().filename() != ".lock")
      bytes << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    found[entry.path().lexically_relative(folder).string()] = bytes.str();
  }
  return found;
}

std::vector<std::string> differences(const std::map<std::string, std::string>& before,
                                     const std::map<std::string, std::string>& after) {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : after)
    if (!before.contains(name) || before.at(name) != bytes) names.push_back(name);
  for (const auto& [name, bytes] : before)
    if (!after.contains(name)) names.push_back(name);
  return names;
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

// The limit makes write() stop half-way, as a full disk does; the shell counts in blocks of 512 bytes.
std::string with_files_of_at_most(int64_t blocks) {
  return "trap '' XFSZ; ulimit -f " + std::to_string(blocks) + "; ";
}

class BadInput : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    suite_ = fs::temp_directory_path() / ("adder-bad-input-" + std::to_string(::getpid()));
    fs::remove_all(suite_);
    fs::create_directories(suite_);
    fill(suite_);
    const std::string train = "train @/run.toml --set train.out=@/";
    for (const std::string& run_of : {train + "copying", train + "bytes " + kLanguage + kFiles + "@/text.txt"}) {
      const Outcome outcome = run(filled(run_of, suite_));
      ASSERT_EQ(outcome.code, 0) << outcome.output;
    }
  }
  static void TearDownTestSuite() { fs::remove_all(suite_); }

  void SetUp() override {
    folder_ = suite_ / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::create_directory(folder_);
    fill(folder_);
  }

  static void fill(const fs::path& folder) {
    put(folder / "run.toml", kConfig);
    std::string text;
    for (int i = 0; i < 40; ++i) text += "hello world, a small text\n";
    put(folder / "text.txt", text);
  }

  static void copy_runs(const std::string& arguments, const fs::path& folder) {
    for (const std::string name : {"copying", "bytes"})
      if (arguments.find("@/" + name) != arguments.npos)
        fs::copy(suite_ / name, folder / name, fs::copy_options::recursive);
  }

  // The program with "@" filled in.
  Outcome program(const std::string& arguments, const std::string& before = "",
                  const std::string& streams = "2>&1") const {
    return run(filled(arguments, folder_), before, streams);
  }

  // As many at a time as there are processors: each takes a quarter of a second to load LibTorch.
  void expect_refused(const std::vector<Case>& cases) const {
    struct Result {
      Outcome outcome;
      std::vector<std::string> changed;
    };
    std::vector<Result> results(cases.size());
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t i; (i = next++) < cases.size();) {
        const Case& c = cases[i];
        const fs::path folder = folder_ / std::to_string(i);
        fs::create_directory(folder);
        fill(folder);
        copy_runs(c.arguments, folder);
        for (const auto& [name, bytes] : c.files) put(folder / name, bytes);
        if (c.spoil) c.spoil(folder);
        const auto before = snapshot(folder);
        results[i].outcome = run(filled(c.arguments, folder), "OMP_NUM_THREADS=1 ");
        results[i].changed = differences(before, snapshot(folder));
      }
    };
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE(cases[i].name);
      const auto& [code, output] = results[i].outcome;
      EXPECT_TRUE(code > 0 && code < 128) << code;
      for (const std::string& message : cases[i].messages)
        EXPECT_THAT(output, HasSubstr(filled(message, folder_ / std::to_string(i))));
      EXPECT_LT(output.size(), 1000) << output;
      EXPECT_THAT(output, Not(HasSubstr("1797693134862315")));  // the largest double is no help to anybody
      EXPECT_THAT(results[i].changed, testing::IsEmpty());
    }
  }

  static fs::path suite_;
  fs::path folder_;
};

fs::path BadInput::suite_;

TEST_F(BadInput, CommandLines) {
  expect_refused(command_lines());
}
TEST_F(BadInput, Configurations) {
  expect_refused(configurations());
}
TEST_F(BadInput, Data) {
  expect_refused(data_files());
}
TEST_F(BadInput, Checkpoints) {
  expect_refused(checkpoints());
}
TEST_F(BadInput, PromptsAndPlots) {
  expect_refused(prompts_and_plots());
}
TEST_F(BadInput, Permissions) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read and write everything";
  expect_refused(permissions());
}

// Such a token is found when its window is read, so the folder of the run is there; no checkpoint is.
TEST_F(BadInput, ATokenOutsideTheVocabularyIsNamed) {
  for (const auto& [name, bytes] : token_file(9)) put(folder_ / name, bytes);
  const Outcome outcome = program(kTokenFile);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr(filled("@/tokens.bin: token ", folder_)));
  EXPECT_THAT(outcome.output, HasSubstr(" is 9, outside the vocabulary of 8"));
  if (!fs::exists(folder_ / "out")) return;
  for (const std::string& name : names_in(folder_ / "out")) EXPECT_THAT(name, Not(HasSubstr("step-")));
}

TEST_F(BadInput, AFullDiskWhileACheckpointIsWritten) {
  const std::string train = kTrain + "--set train.checkpoint_every=2 ";
  const Outcome full = program(train, with_files_of_at_most(40));
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr("step-00000002: the checkpoint was not written: "));
  EXPECT_THAT(full.output, HasSubstr("File too large"));
  EXPECT_THAT(names_in(folder_ / "out"), ElementsAre(".lock", "config.toml", "metrics.jsonl"));
  const Outcome resumed = program(train + "--resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  const char* const weights = "step-00000006/model.safetensors";
  EXPECT_EQ(contents(folder_ / "out" / weights), contents(suite_ / "copying" / weights));
}

TEST_F(BadInput, AFullDiskWhileMetricsAreWritten) {
  const std::string train = kTrain + "--set train.log_every=1 --set train.checkpoint_every=100 --set train.steps=";
  const Outcome full = program(train + "3000", with_files_of_at_most(140));
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.output, HasSubstr(filled("cannot write '@/out/metrics.jsonl': File too large", folder_)));
  EXPECT_EQ(program("eval @/out").code, 0);
  EXPECT_EQ(program("plot @/out --out @/plot.png").code, 0);
  const Outcome resumed = program(train + "1000 --resume");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  // The step whose line found no room is saved, and the run goes on behind it: that one line is missing.
  EXPECT_THAT(resumed.output, HasSubstr("resuming from"));
  int64_t last = 0, missing = 0;
  std::ifstream metrics(folder_ / "out" / "metrics.jsonl");
  for (std::string line; std::getline(metrics, line);) {
    const auto json = nlohmann::json::parse(line);
    if (!json.contains("loss")) continue;
    const auto step = json["step"].get<int64_t>();
    ASSERT_GT(step, last);
    missing += step - last - 1;
    last = step;
  }
  EXPECT_EQ(last, 1000);
  EXPECT_EQ(missing, 1);
}

TEST_F(BadInput, AFullDiskWhileAPictureIsWritten) {
  copy_runs("@/copying", folder_);
  const auto before = snapshot(folder_);
  const Outcome outcome = program("plot @/copying --out @/plot.png", with_files_of_at_most(2));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr(filled("cannot write '@/plot.png' at byte 1024: File too large", folder_)));
  EXPECT_THAT(differences(before, snapshot(folder_)), testing::IsEmpty());
}

TEST_F(BadInput, AFullDiskBehindStandardOutput) {
  copy_runs("@/bytes", folder_);
  for (const char* arguments :
       {"eval @/bytes --json", "generate @/bytes --quiet", "train @/run.toml --dry-run", "train --help", "--version"}) {
    const Outcome outcome = program(arguments, "", "2>&1 >/dev/full");
    EXPECT_EQ(outcome.code, 1) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr("No space left on device")) << arguments;
  }
}

TEST_F(BadInput, AFolderInUseIsLeftAlone) {
  copy_runs("@/copying", folder_);
  const core::FolderLock lock(folder_ / "copying");
  const auto before = snapshot(folder_);
  const Outcome outcome = program("train @/run.toml --resume --set train.out=@/copying --set train.steps=9");
  EXPECT_EQ(outcome.code, 1);
  const std::string pid = std::to_string(::getpid());
  EXPECT_THAT(outcome.output, HasSubstr(filled("@/copying: in use by another run (pid " + pid + ")", folder_)));
  EXPECT_THAT(differences(before, snapshot(folder_)), testing::IsEmpty());
  EXPECT_EQ(program("eval @/copying").code, 0);
}

// What was lost is said, and what the run then writes is what is found, even beside damaged checkpoints of later steps.
TEST_F(BadInput, ADamagedCheckpointIsSkippedAndDoesNotOutliveTheWholeOnes) {
  copy_runs("@/copying", folder_);
  cut(folder_ / "copying" / "step-00000006" / "model.safetensors");
  std::ofstream(folder_ / "copying" / "metrics.jsonl", std::ios::app) << "no JSON\n{\"step\":\"4\"}\n";
  const Outcome resumed =
      program("train @/run.toml --resume --set train.out=@/copying --set train.steps=5 --set train.keep_checkpoints=1");
  ASSERT_EQ(resumed.code, 0) << resumed.output;
  EXPECT_THAT(resumed.output,
              HasSubstr(filled("skipping a damaged checkpoint: @/copying/step-00000006/model.safetensors", folder_)));
  EXPECT_THAT(resumed.output, HasSubstr(filled("resuming from @/copying/step-00000003 (step 3)", folder_)));
  const Outcome evaluated = program("eval @/copying");
  EXPECT_EQ(evaluated.code, 0) << evaluated.output;
  EXPECT_THAT(evaluated.output, HasSubstr("step 5"));
}

TEST_F(BadInput, ALossThatIsNotFiniteLeavesTheWeightsOfTheStepBefore) {
  const std::string broken = " --set train.optimizer.lr=1e30 --set train.optimizer.clip=0";
  const Outcome outcome = program(kTrain + broken);
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr("training stopped in step 2: the loss is "));
  EXPECT_THAT(outcome.output, HasSubstr("first not finite: the output of backbone."));
  EXPECT_THAT(outcome.output, HasSubstr(filled("are saved in @/out/step-00000001", folder_)));
  ASSERT_EQ(program("train @/run.toml --set train.out=@/one --set train.steps=1" + broken).code, 0);
  const char* const weights = "step-00000001/model.safetensors";
  EXPECT_EQ(contents(folder_ / "out" / weights), contents(folder_ / "one" / weights));
}

TEST_F(BadInput, AnEmptyPromptIsNone) {
  copy_runs("@/bytes", folder_);
  put(folder_ / "empty.txt", "");
  const std::string generate = "generate @/bytes --quiet --set max_tokens=5 ";
  const Outcome none = program(generate);
  EXPECT_EQ(none.code, 0) << none.output;
  EXPECT_EQ(none.output.size(), 6);  // 5 bytes and a line's end
  for (const char* prompt : {"--prompt ''", "--prompt-file @/empty.txt"})
    EXPECT_EQ(program(generate + prompt).output, none.output);
}

}  // namespace
}  // namespace adder::tests
