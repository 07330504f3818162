// Agreement with the `safetensors` Python package, both ways: its Python runs as a child.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <sstream>
#include <string>

#include "adder/core/check.h"
#include "adder/weights/safetensors.h"
#include "tests/python_child.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;

class Interop : public tests::PythonTest {
 protected:
  void SetUp() override { prepare("safetensors, numpy"); }
};

// The package reads our file, says what it found, and writes it again: to the same bytes.
TEST_F(Interop, ThePackageReadsOurFilesAndWritesTheSameBytes) {
  const at::Tensor counting = at::arange(6).view({2, 3});
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const at::ScalarType dtype :
       {at::kBool, at::kByte, at::kChar, at::kShort, at::kUInt16, at::kHalf, at::kBFloat16, at::kInt, at::kUInt32,
        at::kFloat, at::kComplexFloat, at::kDouble, at::kLong, at::kUInt64}) {
    const std::string name = c10::toString(dtype);
    tensors.emplace_back("values." + name, counting.to(dtype));
    tensors.emplace_back("a.scalar." + name, at::ones({}, dtype));
    tensors.emplace_back("empty \"\\\t\x7f é." + name, at::ones({0, 2}, dtype));
  }
  write_safetensors(folder_ / "ours.safetensors", tensors, {{"format", "pt \"é\"\n\x1f"}});
  write_safetensors(folder_ / "none.safetensors", {});
  const auto [status, output] = python(R"(
import torch, safetensors
from safetensors.torch import load_file, save_file
with safetensors.safe_open("ours.safetensors", framework="pt") as f:
    metadata = f.metadata()
tensors = load_file("ours.safetensors")
assert len(tensors) == 42, len(tensors)
for name, tensor in tensors.items():
    kind, dtype = name.split(".")[0], str(tensor.dtype).split(".")[1]
    want = {"values": torch.arange(6).view(2, 3), "a": torch.ones(())}.get(kind, torch.ones(0, 2)).to(tensor.dtype)
    assert tensor.shape == want.shape and tensor.tolist() == want.tolist(), name
save_file(tensors, "theirs.safetensors", metadata)
assert load_file("none.safetensors") == {}
save_file({}, "none_theirs.safetensors")
)");
  ASSERT_EQ(status, 0) << output;
  EXPECT_EQ(read("theirs.safetensors"), read("ours.safetensors"));
  EXPECT_EQ(read("none_theirs.safetensors"), read("none.safetensors"));
}

TEST_F(Interop, WeReadThePackagesFiles) {
  const auto [status, output] = python(R"(
import numpy as np
from safetensors.numpy import save_file
save_file({"f16": np.array([1.5, -2, np.inf], np.float16), "i64": np.array([[-1], [2**62]], np.int64),
           "none": np.zeros((3, 0), np.float64), "bool": np.array([True, False]), "u8": np.array(255, np.uint8),
           "f64": np.array([0.1])}, "theirs.safetensors", {"k": "v", "": "\u00e9"})
)");
  ASSERT_EQ(status, 0) << output;
  const SafetensorsFile file(folder_ / "theirs.safetensors");
  EXPECT_EQ(file.names().size(), 6u);
  EXPECT_EQ(file.metadata(), (Metadata{{"k", "v"}, {"", "é"}}));
  EXPECT_TRUE(at::equal(file.tensor("f16"), at::tensor({1.5, -2.0, INFINITY}).to(at::kHalf)));
  EXPECT_TRUE(at::equal(file.tensor("i64"), at::tensor({int64_t{-1}, int64_t{1} << 62}).view({2, 1})));
  EXPECT_EQ(file.tensor("none").sizes(), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(file.tensor("none").scalar_type(), at::kDouble);
  EXPECT_TRUE(at::equal(file.tensor("bool"), at::tensor({1, 0}).to(at::kBool)));
  EXPECT_EQ(file.tensor("u8").item<int64_t>(), 255);
  EXPECT_EQ(file.tensor("u8").dim(), 0);
  EXPECT_EQ(file.tensor("f64").item<double>(), 0.1);
}

// Whatever the package refuses, we refuse; what it reads and we do not is refused by a rule of ours that the test
// names.
TEST_F(Interop, WeRefuseWhatThePackageRefuses) {
  write_safetensors(folder_ / "good", {{"w", at::ones({3, 2})}, {"b", at::ones({5}, at::kByte)}, {"n", at::ones({0})}},
                    {{"format", "pt"}});
  const std::string good = read("good");
  std::vector<std::string> files = {good + "x"};
  for (size_t length = 0; length < good.size(); ++length) files.push_back(good.substr(0, length));
  for (size_t at = 0; at < good.size(); ++at) {
    for (const int bits : {1, 2, 3, 4, 16, 32, 128}) {
      files.push_back(good);
      files.back()[at] = static_cast<char>(good[at] ^ bits);
    }
  }
  std::string all;
  for (const std::string& file : files) all += fmt::format("{:08}", file.size()) + file;
  core::write_file_atomically(folder_ / "all", all);
  const auto [status, output] = python(R"(
import safetensors
data = open("all", "rb").read()
while data:
    size = int(data[:8])
    try:
        safetensors.deserialize(data[8:8 + size])
        print("read")
    except safetensors.SafetensorError:
        print("refused")
    data = data[8 + size:]
)");
  ASSERT_EQ(status, 0) << output;
  std::istringstream verdicts(output);
  int64_t both_read = 0, both_refused = 0;
  for (const std::string& file : files) {
    std::string theirs, ours = "read", reason;
    ASSERT_TRUE(verdicts >> theirs) << output;
    try {
      core::FileWriter(folder_ / "x", folder_ / "x").write(file);
      SafetensorsFile opened(folder_ / "x");
    } catch (const Error& error) {
      ours = "refused";
      reason = error.what();
    }
    const bool stricter = reason.find("unknown field") != std::string::npos ||
                          reason.find("appears twice") != std::string::npos ||
                          reason.find("dtype must be one of") != std::string::npos;
    EXPECT_TRUE(theirs == ours || (theirs == "read" && stricter))
        << theirs << " by the package, but " << ours << " here: " << reason << "\n"
        << file;
    both_read += theirs == "read" && ours == "read";
    both_refused += theirs == "refused" && ours == "refused";
  }
  EXPECT_GT(both_read, 100);
  EXPECT_GT(both_refused, 1000);
}

}  // namespace
}  // namespace adder::weights
