// What the program does where the disk is full, a folder is taken, a checkpoint is damaged or a loss is not finite.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adder/core/files.h"
#include "tests/cli/program_runs.h"

namespace adder::tests {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Trouble = ProgramRuns;

TEST_F(Trouble, AFullDiskWhileACheckpointIsWritten) {
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

TEST_F(Trouble, AFullDiskWhileMetricsAreWritten) {
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

TEST_F(Trouble, AFullDiskWhileAPictureIsWritten) {
  copy_runs("@/copying", folder_);
  const auto before = snapshot(folder_);
  const Outcome outcome = program("plot @/copying --out @/plot.png", with_files_of_at_most(2));
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.output, HasSubstr(filled("cannot write '@/plot.png' at byte 1024: File too large", folder_)));
  EXPECT_THAT(differences(before, snapshot(folder_)), testing::IsEmpty());
}

TEST_F(Trouble, AFullDiskBehindStandardOutput) {
  copy_runs("@/bytes", folder_);
  for (const char* arguments :
       {"eval @/bytes --json", "generate @/bytes --quiet", "train @/run.toml --dry-run", "train --help", "--version"}) {
    const Outcome outcome = program(arguments, "", "2>&1 >/dev/full");
    EXPECT_EQ(outcome.code, 1) << arguments;
    EXPECT_THAT(outcome.output, HasSubstr("No space left on device")) << arguments;
  }
}

TEST_F(Trouble, AFolderInUseIsLeftAlone) {
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
TEST_F(Trouble, ADamagedCheckpointIsSkippedAndDoesNotOutliveTheWholeOnes) {
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

TEST_F(Trouble, ALossThatIsNotFiniteLeavesTheWeightsOfTheStepBefore) {
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

TEST_F(Trouble, AnEmptyPromptIsNone) {
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
