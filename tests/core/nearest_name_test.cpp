#include "adder/core/nearest_name.h"

#include <gtest/gtest.h>

namespace adder::core {
namespace {

using Names = std::vector<std::string>;

TEST(NearestName, CorrectsOneEdit) {
  const Names names = {"lr", "batch_size", "warmup_steps", "model"};
  EXPECT_EQ(nearest_name("lrr", names), "lr");
  EXPECT_EQ(nearest_name("l", names), "lr");
  EXPECT_EQ(nearest_name("batchsize", names), "batch_size");
  EXPECT_EQ(nearest_name("batch-size", names), "batch_size");
  EXPECT_EQ(nearest_name("modle", names), "model") << "a swap is one edit";
  EXPECT_EQ(nearest_name("MODEL", names), "model");
  EXPECT_EQ(nearest_name("model", names), "model");
}

TEST(NearestName, TakesTheSmallestDistanceAndThenTheFirst) {
  EXPECT_EQ(nearest_name("d_states", {"d_stale", "d_state"}), "d_state");
  EXPECT_EQ(nearest_name("cat", {"bat", "hat"}), "bat");
  EXPECT_EQ(nearest_name("ca", {"abc", "ac"}), "ac");
}

TEST(NearestName, GivesNothingWhereNothingIsNear) {
  EXPECT_EQ(nearest_name("momentum", {"lr", "steps", "seed"}), std::nullopt);
  EXPECT_EQ(nearest_name("x", {"y"}), std::nullopt) << "nothing in common";
  EXPECT_EQ(nearest_name("ab", {"cd", "ax"}), "ax");
  EXPECT_EQ(nearest_name("abcdef", {"abcxyz"}), std::nullopt) << "three edits of six letters";
  EXPECT_EQ(nearest_name("abcdef", {"abcdxy"}), "abcdxy") << "two edits of six letters";
  EXPECT_EQ(nearest_name("abc", {}), std::nullopt);
  EXPECT_EQ(nearest_name("", {"abc"}), std::nullopt);
  EXPECT_EQ(nearest_name(std::string(1'000'000, 'a'), {"a", "abc"}), std::nullopt);
}

TEST(NearestName, CompletesABeginningOfOneNameOnly) {
  EXPECT_EQ(nearest_name("warmup", {"lr", "warmup_steps"}), "warmup_steps");
  EXPECT_EQ(nearest_name("warmup", {"warmup_steps", "warmup_fraction"}), std::nullopt);
  EXPECT_EQ(nearest_name("wa", {"warmup_steps"}), std::nullopt) << "too short to tell";
}

TEST(NearestName, CountsBytesOfOtherScriptsAsTheyAre) {
  EXPECT_EQ(nearest_name("größe", {"breite", "grösse"}), "grösse");
  EXPECT_EQ(nearest_name("\xff\xfe", {"lr"}), std::nullopt);
}

}  // namespace
}  // namespace adder::core
