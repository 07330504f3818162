// What the program says to bad input: one clear message, an exit code that is not 0, and nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>

#include "tests/cli/program_runs.h"

namespace adder::tests {
namespace {

using testing::HasSubstr;
using testing::Not;

// Its folder holds the finished runs that the arguments name.
struct Case {
  std::string name, arguments;
  std::vector<std::string> messages;
  std::vector<std::pair<std::string, std::string>> files = {};
  std::function<void(const fs::path&)> spoil = {};
};

void change(const fs::path& path, const std::string& from, const std::string& to) {
  std::string text = contents(path);
  text.replace(text.find(from), from.size(), to);
  put(path, text);
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
      {"bench_device",
       "bench scan --device tpu",
       {"device must be \"cpu\", \"cuda\" or \"cuda:<number>\", got \"tpu\""}},
      {"bench_device_number", "bench scan --device cuda:x", {"or \"cuda:<number>\", got \"cuda:x\""}},
      {"bench_no_such_device", "bench scan --device cuda:99", {"device \"cuda:99\": "}}};
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
  set("train.machine=cuda", {"unknown key 'train.machine'; the keys of [train] are: out, init_from"});
  set("train.device=gpu", {"device must be \"cpu\", \"cuda\" or \"cuda:<number>\", got \"gpu\""});
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

class BadInput : public ProgramRuns {
 protected:
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
};

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

}  // namespace
}  // namespace adder::tests
