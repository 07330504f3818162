// Checkpoints as torch.save writes them: its Python runs as a child. What is made by hand is in torch_tensors_test.cpp.
#include "adder/weights/torch_file.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "adder/core/check.h"
#include "adder/weights/safetensors.h"
#include "tests/data/temporary_folder.h"
#include "tests/error_of.h"
#include "tests/python_child.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;

using testing::ElementsAre;
using testing::HasSubstr;

// `save(object, name)` writes name.zip, one archive per protocol, and name.legacy.
constexpr const char* kStart = R"(
import argparse, collections, torch
forms = {"zip": {}, "zip3": {"pickle_protocol": 3}, "zip4": {"pickle_protocol": 4}, "zip5": {"pickle_protocol": 5},
         "legacy": {"_use_new_zipfile_serialization": False},
         "legacy4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4}}
def save(object, name):
    for form, options in forms.items():
        torch.save(object, f"{name}.{form}", **options)
a = torch.arange(6.).view(2, 3)
)";
constexpr const char* kForms[] = {"zip", "zip3", "zip4", "zip5", "legacy", "legacy4"};

class TorchFileTest : public tests::PythonTest {
 protected:
  void SetUp() override { prepare("torch"); }

  void save(const std::string& script) const {
    const auto [status, output] = python(kStart + script);
    ASSERT_EQ(status, 0) << output;
  }

  TorchFile open(const std::string& name, const std::string& form) const {
    return TorchFile(folder_ / (name + "." + form));
  }

  std::string error_of(const std::string& name) const {
    return error_behind((folder_ / name).string() + ": ", [&] { TorchFile file(folder_ / name); });
  }

  std::string read(const std::string& name) const {
    const core::MappedFile file(folder_ / name);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }
};

at::Tensor counting() {
  return at::arange(6, at::kFloat).view({2, 3});
}

TEST_F(TorchFileTest, EveryDtypeAndShape) {
  save(R"(
names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool complex32 complex64 " \
        "complex128 float8_e4m3fn float8_e5m2"
tensors = {}
for name in names.split():
    dtype = getattr(torch, name)
    tensors[f"plain.{name}"] = a.to(dtype)
    tensors[f"scalar.{name}"] = a[0, 1].to(dtype)
    tensors[f"empty.{name}"] = torch.empty(0, 2, dtype=dtype)
save(tensors, "x")
)");
  const std::pair<const char*, at::ScalarType> rows[] = {
      {"float64", at::kDouble},
      {"float32", at::kFloat},
      {"float16", at::kHalf},
      {"bfloat16", at::kBFloat16},
      {"int64", at::kLong},
      {"int32", at::kInt},
      {"int16", at::kShort},
      {"int8", at::kChar},
      {"uint64", at::kUInt64},
      {"uint32", at::kUInt32},
      {"uint16", at::kUInt16},
      {"uint8", at::kByte},
      {"bool", at::kBool},
      {"complex32", at::kComplexHalf},
      {"complex64", at::kComplexFloat},
      {"complex128", at::kComplexDouble},
      {"float8_e4m3fn", at::kFloat8_e4m3fn},
      {"float8_e5m2", at::kFloat8_e5m2},
  };
  const auto bits = [](const at::Tensor& tensor) {
    const at::Tensor plain = tensor.contiguous();
    return std::string(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
  };
  for (const char* form : kForms) {
    const TorchFile file = open("x", form);
    EXPECT_EQ(file.names().size(), 3 * std::size(rows));
    for (const auto& [name, dtype] : rows) {
      const at::Tensor plain = file.tensor(fmt::format("plain.{}", name));
      EXPECT_EQ(plain.scalar_type(), dtype) << form << " " << name;
      EXPECT_EQ(plain.sizes(), (std::vector<int64_t>{2, 3}));
      EXPECT_EQ(bits(plain), bits(counting().to(dtype))) << form << " " << name;
      const at::Tensor scalar = file.tensor(fmt::format("scalar.{}", name));
      EXPECT_EQ(scalar.dim(), 0);
      EXPECT_EQ(bits(scalar), bits(at::ones({}).to(dtype))) << form << " " << name;
      const at::Tensor empty = file.tensor(fmt::format("empty.{}", name));
      EXPECT_EQ(empty.sizes(), (std::vector<int64_t>{0, 2}));
      EXPECT_EQ(empty.scalar_type(), dtype);
    }
  }
}

TEST_F(TorchFileTest, ViewsShareTheirStorage) {
  save(R"(
c = torch.tensor([1 + 2j, 3 - 4j])
tensors = collections.OrderedDict(a=a, transposed=a.t(), slice=a[1:, ::2], expanded=a[0].expand(4, 3), same=a,
                                  conj=c.conj(), neg=torch.imag(c.clone().conj()))
tensors["reversed order"] = a.flip(0)
save(tensors, "x")
)");
  const at::Tensor a = counting();
  for (const char* form : kForms) {
    const TorchFile file = open("x", form);
    EXPECT_THAT(file.names(),
                ElementsAre("a", "transposed", "slice", "expanded", "same", "conj", "neg", "reversed order"));
    EXPECT_TRUE(at::equal(file.tensor("a"), a));
    EXPECT_TRUE(at::equal(file.tensor("transposed"), a.t()));
    EXPECT_EQ(file.tensor("transposed").strides(), a.t().strides());
    EXPECT_TRUE(at::equal(file.tensor("slice"), at::tensor({3.0f, 5.0f}).view({1, 2})));
    EXPECT_TRUE(at::equal(file.tensor("expanded"), a[0].expand({4, 3})));
    EXPECT_TRUE(at::equal(file.tensor("same"), a));
    EXPECT_TRUE(at::equal(at::imag(file.tensor("conj")), at::tensor({-2.0f, 4.0f})));
    EXPECT_TRUE(at::equal(file.tensor("neg"), at::tensor({-2.0f, 4.0f})));
    EXPECT_TRUE(at::equal(file.tensor("reversed order"), a.flip(0)));
  }
  // Archives are aligned: no copies.
  at::Tensor view;
  {
    const TorchFile file = open("x", "zip");
    view = file.tensor("a");
    EXPECT_EQ(view.const_data_ptr(), file.tensor("transposed").const_data_ptr());
    EXPECT_EQ(static_cast<const float*>(view.const_data_ptr()) + 3, file.tensor("slice").const_data_ptr());
  }
  core::write_file_atomically(folder_ / "x.zip", "gone");
  EXPECT_TRUE(at::equal(view, a));
}

TEST_F(TorchFileTest, StateDictsOfModulesAndOptimizers) {
  save(R"(
model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
with torch.no_grad():
    model[0].weight.copy_(a)
model[0].bias.note = "attributes of a parameter"
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(4, 3)).sum().backward()
optimizer.step()
with torch.no_grad():
    model[0].weight.copy_(a)
save(model.state_dict(), "module")
save(dict(model.named_parameters()), "parameters")
everything = {"epoch": 3, "lr": 0.5, "version": "2.4.0", "optimizer_states": [optimizer.state_dict()],
              "hyper_parameters": argparse.Namespace(width=3, size=a.shape, device=torch.device("cpu"), dtype=a.dtype),
              "raw": b"\x00\xff", "counter": collections.Counter([1, 1]), "huge": 1 << 100, "none": None,
              "state_dict": collections.OrderedDict(("model." + k, v) for k, v in model.state_dict().items())}
save(everything, "lightning")
save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "nanogpt")
save(optimizer.state_dict(), "optimizer")
save({"net": {"encoder": model.state_dict()}, "ema": model.state_dict()}, "nested")
)");
  const std::vector<std::string> names = {
      "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"};
  std::vector<std::string> prefixed, nested;
  for (const std::string& name : names) prefixed.push_back("model." + name);
  for (const std::string& name : names) nested.push_back("net.encoder." + name);
  for (const std::string& name : names) nested.push_back("ema." + name);
  for (const char* form : kForms) {
    EXPECT_EQ(open("module", form).names(), names);
    EXPECT_EQ(open("lightning", form).names(), prefixed);
    EXPECT_EQ(open("nanogpt", form).names(), names);
    EXPECT_EQ(open("nested", form).names(), nested);
    EXPECT_THAT(open("parameters", form).names(), ElementsAre("0.weight", "0.bias", "1.weight", "1.bias"));
    for (const auto& [file, name] : {std::pair("module", "0.weight"), std::pair("parameters", "0.weight"),
                                     std::pair("lightning", "model.0.weight"), std::pair("nanogpt", "0.weight"),
                                     std::pair("nested", "net.encoder.0.weight")}) {
      EXPECT_TRUE(at::equal(open(file, form).tensor(name), counting())) << file << " " << form;
    }
    const TorchFile optimizer = open("optimizer", form);
    EXPECT_EQ(optimizer.tensor("state.0.exp_avg").sizes(), counting().sizes());
    EXPECT_EQ(optimizer.tensor("state.0.step").item<float>(), 1.0f);
  }
}

TEST_F(TorchFileTest, WhatIsRefused) {
  save(R"(
import os, zipfile
class Run:
    def __reduce__(self):
        return os.system, ("touch ran",)
save({"a": a, "b": Run()}, "code")
save(torch.nn.Linear(2, 2), "module")
save(a, "tensor")
save({"a": 1}, "none")
save({"a": a}, "good")
with zipfile.ZipFile("good.zip") as good, zipfile.ZipFile("deflated.zip", "w", zipfile.ZIP_DEFLATED) as out:
    for name in good.namelist():
        out.writestr(name, good.read(name))
torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.zip")
torch.serialization.set_crc32_options(False)
save({"a": a}, "sumless")
)");
  for (const std::string form : kForms) {
    EXPECT_THAT(error_of("code." + form), HasSubstr(".system; only tensors and plain containers are read"));
    EXPECT_THAT(error_of("module." + form), HasSubstr("asks for torch.nn.modules.linear.Linear;"));
    EXPECT_EQ(error_of("tensor." + form), "must hold a dict of tensors, got an object");
    EXPECT_EQ(error_of("none." + form), "its state dict holds no tensors");
    EXPECT_TRUE(at::equal(open("sumless", form).tensor("a"), counting()));
  }
  EXPECT_FALSE(fs::exists(folder_ / "ran"));
  EXPECT_THAT(error_of("deflated.zip"), HasSubstr("must be stored as it is"));
  EXPECT_THAT(error_of("script.zip"), HasSubstr("is a TorchScript program"));
}

// The sums of an archive tell every change of a tensor or of the pickle; the older form has none.
TEST_F(TorchFileTest, EveryChangedByteAndEveryLengthIsRefusedOrReadWithinBounds) {
  save(R"(
tensors = collections.OrderedDict(w=a, t=a.t(), m=torch.tensor([True, False]), p=torch.nn.Parameter(a[0]))
save(tensors, "good")
)");
  const fs::path path = folder_ / "changed";
  int64_t tried = 0, refused = 0;
  const auto attempt = [&](const std::string& contents) -> std::string {
    fs::remove(path);  // overwriting a file in place waits for the disk
    core::FileWriter(path, path).write(contents);
    ++tried;
    std::string values;
    try {
      const TorchFile file(path);
      for (const std::string& name : file.names()) {
        const at::Tensor tensor = file.tensor(name);
        if (tensor.numel() > 1'000'000) continue;
        const at::Tensor plain = tensor.contiguous();
        values.append(name).append(static_cast<const char*>(plain.const_data_ptr()), plain.nbytes());
      }
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
      ++refused;
      return "refused";
    }
    return values;
  };
  for (const std::string form : {"zip", "legacy"}) {
    const std::string good = read("good." + form), expected = attempt(good);
    EXPECT_NE(expected, "refused");
    for (size_t length = 0; length < good.size(); ++length) {
      EXPECT_EQ(attempt(good.substr(0, length)), "refused") << form << " " << length;
    }
    for (size_t at = 0; at < good.size(); ++at) {
      for (const int bits : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
        std::string changed = good;
        changed[at] = static_cast<char>(changed[at] ^ bits);
        const std::string got = attempt(changed);
        if (form == "zip") {
          EXPECT_TRUE(got == "refused" || got == expected) << at << " " << bits;
        }
      }
    }
  }
  RecordProperty("tried", std::to_string(tried));
  RecordProperty("refused", std::to_string(refused));
  EXPECT_GT(refused, tried / 4);
}

TEST(TorchFile, APublishedCheckpointEqualsItsSafetensors) {
  const fs::path folder = data::shared_data("weights/cryptomamba");
  if (!fs::exists(folder / "cmamba_v.ckpt")) GTEST_SKIP() << "no cmamba_v.ckpt in " << folder;
  const TorchFile ours(folder / "cmamba_v.ckpt");
  const SafetensorsFile theirs(folder / "cmamba_v.safetensors");
  ASSERT_EQ(ours.names().size(), 140u);
  EXPECT_THAT(ours.names(), testing::UnorderedElementsAreArray(theirs.names()));
  for (const std::string& name : theirs.names()) {
    EXPECT_EQ(tensor_hash(ours.tensor(name)), tensor_hash(theirs.tensor(name))) << name;
  }
}

}  // namespace
}  // namespace adder::weights
