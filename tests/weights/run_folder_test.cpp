// The checkpoints in a run's folder: which there are, which is the latest, what a path stands for.
#include <fstream>

#include "tests/error_of.h"
#include "tests/weights/checkpoint_fixture.h"

namespace adder::weights {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class RunFolder : public Checkpoint {
 protected:
  void write(const std::string& name, int64_t step) const {
    CheckpointContent content = small();
    content.state["step"] = step;
    write_checkpoint_folder(folder_ / name, content);
  }
  static int64_t step_of(const CheckpointFolder& checkpoint) { return checkpoint.state()["step"].get<int64_t>(); }
};

TEST_F(RunFolder, NumberedCheckpointsAreListedByStep) {
  EXPECT_TRUE(list_checkpoints(folder_).empty());
  EXPECT_FALSE(latest_checkpoint(folder_));
  for (const char* name : {"step-123456789", "step-00000000", "step-00001000", "step-99999999", "best", "step-1",
                           "step-", "step-00001000.old", "step-0000001a", "step-000001000", "step--0000001",
                           "step-99999999999999999999", ".step-00002000.tmp-0123456789abcdef"}) {
    fs::create_directory(folder_ / name);
  }
  std::ofstream(folder_ / "step-00000005") << "a file";
  std::vector<int64_t> steps;
  for (const NumberedCheckpoint& checkpoint : list_checkpoints(folder_)) {
    steps.push_back(checkpoint.step);
    EXPECT_EQ(checkpoint.path, folder_ / checkpoint_name(checkpoint.step));
  }
  EXPECT_THAT(steps, ElementsAre(0, 1000, 99999999, 123456789));
  EXPECT_EQ(checkpoint_name(1000), "step-00001000");
  EXPECT_EQ(error_of([] { checkpoint_name(-1); }), "a checkpoint's step must be at least 0, got -1");
  EXPECT_THAT(error_of([&] { list_checkpoints(folder_ / "none"); }), EndsWith("none: there is no such folder"));
}

TEST_F(RunFolder, TheLatestIsTheNewestThatOpens) {
  for (const int64_t step : {1, 2, 3, 4}) write(checkpoint_name(step), step);
  EXPECT_EQ(step_of(latest_checkpoint(folder_)->checkpoint), 4);
  EXPECT_TRUE(latest_checkpoint(folder_)->damaged.empty());
  fs::remove(folder_ / "step-00000004" / "model.safetensors");
  replace(folder_ / "step-00000003" / "checkpoint.json", "");
  fs::remove(folder_ / "step-00000001" / "checkpoint.json");
  const auto latest = latest_checkpoint(folder_);
  ASSERT_TRUE(latest);
  EXPECT_EQ(step_of(latest->checkpoint), 2);
  EXPECT_THAT(latest->damaged, ElementsAre(HasSubstr("step-00000004/model.safetensors: is missing"),
                                           HasSubstr("step-00000003/checkpoint.json: is not valid JSON")));
  fs::remove(folder_ / "step-00000002" / "checkpoint.json");
  const std::string error = error_of([&] { latest_checkpoint(folder_); });
  EXPECT_THAT(error, AllOf(StartsWith(folder_.string() + ": none of its 4 checkpoints can be opened:\n"),
                           HasSubstr("step-00000002: is no Adder checkpoint")));
  EXPECT_EQ(error_of([&] { resolve_checkpoint(folder_); }), error);
}

TEST_F(RunFolder, PathsAreResolved) {
  EXPECT_EQ(error_of([&] { resolve_checkpoint(folder_); }),
            folder_.string() +
                ": is neither an Adder checkpoint (a folder with checkpoint.json) nor a run with "
                "checkpoints (folders such as step-00001000)");
  write("step-00000001", 1);
  write("step-00000002", 2);
  EXPECT_EQ(error_of([&] { resolve_checkpoint(folder_, Which::kBest); }),
            folder_.string() + ": has no checkpoint 'best'");
  write("best", 1);
  EXPECT_EQ(step_of(resolve_checkpoint(folder_).checkpoint), 2);
  EXPECT_EQ(step_of(resolve_checkpoint(folder_ / "").checkpoint), 2);
  EXPECT_EQ(step_of(resolve_checkpoint(folder_, Which::kBest).checkpoint), 1);
  EXPECT_EQ(step_of(resolve_checkpoint(folder_ / "step-00000001").checkpoint), 1);
  EXPECT_EQ(step_of(resolve_checkpoint(folder_ / "step-00000002", Which::kBest).checkpoint), 2);
  EXPECT_THAT(error_of([&] { resolve_checkpoint(folder_ / "none"); }), EndsWith("none: there is no such folder"));
  fs::remove(folder_ / "step-00000002" / "model.safetensors");
  EXPECT_THAT(error_of([&] { resolve_checkpoint(folder_ / "step-00000002"); }), HasSubstr("is missing"));
  const FoundCheckpoint found = resolve_checkpoint(folder_);
  EXPECT_EQ(step_of(found.checkpoint), 1);
  EXPECT_EQ(found.damaged.size(), 1u);
}

}  // namespace
}  // namespace adder::weights
