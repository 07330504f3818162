#include "adder/weights/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>

#include "adder/core/check.h"
#include "tests/error_of.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

// As the specification has them, by hand.
template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}
std::string u32(uint32_t value) {
  return raw(value);
}
std::string u64(uint64_t value) {
  return raw(value);
}
std::string text(const std::string& value) {
  return u64(value.size()) + value;
}
std::string start(uint64_t tensors, uint64_t keys) {
  return "GGUF" + u32(3) + u64(tensors) + u64(keys);
}
std::string pad(std::string bytes) {
  bytes.resize((bytes.size() + 31) / 32 * 32, '\0');
  return bytes;
}
std::string tensor_entry(const std::string& name, const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
  std::string out = text(name) + u32(static_cast<uint32_t>(sizes.size()));
  for (const uint64_t size : sizes) out += u64(size);
  return out + u32(type) + u64(offset);
}

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  return {static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()};
}

GgufMetadata every_value() {
  return {{"a.u8", uint8_t{255}},
          {"a.i8", int8_t{-128}},
          {"a.u16", uint16_t{65535}},
          {"a.i16", int16_t{-32768}},
          {"a.u32", uint32_t{4000000000}},
          {"a.i32", int32_t{-2000000000}},
          {"a.u64", uint64_t{1} << 63},
          {"a.i64", -(int64_t{1} << 62)},
          {"a.f32", 0.1f},
          {"a.f64", 0.1},
          {"a.yes", true},
          {"a.no", false},
          {"a.text", "\xc3\xa9 \"\n\0x"s},
          {"v.u8", std::vector<uint8_t>{1, 2, 3}},
          {"v.i8", std::vector<int8_t>{-1}},
          {"v.u16", std::vector<uint16_t>{500}},
          {"v.i16", std::vector<int16_t>{-500, 7}},
          {"v.u32", std::vector<uint32_t>{70000}},
          {"v.i32", std::vector<int32_t>{-70000, 1}},
          {"v.u64", std::vector<uint64_t>{uint64_t{1} << 40}},
          {"v.i64", std::vector<int64_t>{-1}},
          {"v.f32", std::vector<float>{1.5f, -2.0f}},
          {"v.f64", std::vector<double>{0.3}},
          {"v.bool", std::vector<bool>{true, false, true}},
          {"v.text", std::vector<std::string>{"one", "", "\xc4\xa0t"}}};
}

class Gguf : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_gguf_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "x.gguf";
    torch::manual_seed(1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string read() const {
    const core::MappedFile file(path_);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }

  // The error on opening these bytes, without the path that it must begin with.
  std::string error_of(const std::string& contents) const {
    fs::remove(path_);  // overwriting a file in place waits for the disk
    core::FileWriter(path_, path_).write(contents);
    return error_behind(path_.string() + ": ", [&] {
      const GgufFile file(path_);
      for (const std::string& name : file.names()) {
        const at::Tensor tensor = file.tensor(name);
        EXPECT_EQ(bytes_of(tensor).size(), static_cast<size_t>(tensor.numel()) * tensor.element_size());
      }
    });
  }

  std::string write_error(const GgufMetadata& metadata, const std::vector<GgufTensor>& tensors) const {
    try {
      write_gguf_file(path_, metadata, tensors);
    } catch (const Error& error) {
      EXPECT_TRUE(fs::is_empty(folder_));
      return error.what();
    }
    return "no error";
  }

  fs::path folder_, path_;
};

TEST_F(Gguf, TheBytesAreThoseOfTheSpecification) {
  const at::Tensor counting = at::arange(6, at::kFloat).view({2, 3});
  write_gguf_file(
      path_, {{"k", uint32_t{7}}, {"s", "hi"s}, {"l", std::vector<std::string>{"a", ""}}, {"b", true}},
      {{"w", counting, at::kFloat}, {"h", at::full({3}, 1.5), at::kBFloat16}, {"z", at::ones({}), at::kHalf}});
  std::string wanted = start(3, 4);
  wanted += text("k") + u32(4) + u32(7);
  wanted += text("s") + u32(8) + text("hi");
  wanted += text("l") + u32(9) + u32(8) + u64(2) + text("a") + text("");
  wanted += text("b") + u32(7) + "\1";
  wanted += tensor_entry("w", {3, 2}, 0, 0);  // the fastest dimension first
  wanted += tensor_entry("h", {3}, 30, 32);
  wanted += tensor_entry("z", {}, 1, 64);
  wanted = pad(wanted);
  wanted += pad(raw(0.f) + raw(1.f) + raw(2.f) + raw(3.f) + raw(4.f) + raw(5.f));
  wanted += pad("\xc0\x3f\xc0\x3f\xc0\x3f");
  wanted += pad("\x00\x3c"s);
  EXPECT_EQ(read(), wanted);
}

TEST_F(Gguf, NothingAtAll) {
  write_gguf_file(path_, {}, {});
  EXPECT_EQ(read(), pad(start(0, 0)));
  EXPECT_TRUE(GgufFile(path_).names().empty());
  EXPECT_EQ(error_of(start(0, 0)), "no error");
  EXPECT_THAT(error_of(start(0, 0) + "x"), HasSubstr("but the file has 25 bytes"));
}

TEST_F(Gguf, EveryValueComesBack) {
  write_gguf_file(path_, every_value(), {});
  const GgufFile file(path_);
  EXPECT_EQ(file.metadata(), every_value());
  ASSERT_NE(file.value("a.i16"), nullptr);
  EXPECT_EQ(std::get<int16_t>(*file.value("a.i16")), -32768);
  EXPECT_EQ(file.value("a"), nullptr);
}

TEST_F(Gguf, TensorsOfEveryShapeAndStrideComeBackAligned) {
  const std::vector<std::vector<int64_t>> shapes = {{}, {0}, {1}, {7}, {3, 5}, {2, 0, 3}, {2, 1, 3, 5}, {129, 33}};
  std::vector<GgufTensor> tensors;
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16})
    for (const at::ScalarType from : {at::kFloat, at::kHalf, at::kBFloat16, at::kDouble})
      for (const auto& shape : shapes)
        tensors.push_back({fmt::format("t.{}", tensors.size()), at::randn(shape).to(from), type});
  tensors.push_back({"transposed", at::randn({6, 10}, at::requires_grad()).t(), at::kFloat});
  tensors.push_back({"expanded", at::randn({5}).expand({4, 5}), at::kHalf});
  tensors.push_back({"infinite", at::full({2}, INFINITY), at::kHalf});
  write_gguf_file(path_, {}, tensors);
  const GgufFile file(path_);
  ASSERT_EQ(file.names().size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(file.names()[i], tensors[i].name);
    const at::Tensor got = file.tensor(tensors[i].name);
    EXPECT_EQ(got.scalar_type(), tensors[i].type);
    EXPECT_TRUE(at::equal(got, tensors[i].values.detach().to(tensors[i].type))) << tensors[i].name;
    if (got.numel() > 0) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(got.const_data_ptr()) % 32, 0u);
    }
  }
}

TEST_F(Gguf, TensorsAreViewsThatOutliveTheFile) {
  const at::Tensor written = at::randn({1000});
  write_gguf_file(path_, {}, {{"x", written}});
  const at::Tensor view = GgufFile(path_).tensor("x");
  core::write_file_atomically(path_, "gone");
  EXPECT_TRUE(at::equal(view, written));
}

TEST_F(Gguf, WhatCannotBeWritten) {
  const at::Tensor x = at::ones({1});
  EXPECT_THAT(write_error({}, {{"a", x}, {"a", x}}), HasSubstr("tensor \"a\": is given twice"));
  EXPECT_THAT(write_error({{"k", 1.0}, {"k", 2.0}}, {}), HasSubstr("key \"k\": is given twice"));
  EXPECT_THAT(write_error({{"", 1.0}}, {}), HasSubstr("must have 1 to 65535 bytes, got 0"));
  EXPECT_THAT(write_error({{"general.alignment", uint32_t{64}}}, {}), HasSubstr("is left to the writer"));
  EXPECT_THAT(write_error({{"k", "\xff"s}}, {}), HasSubstr("key \"k\": must be UTF-8"));
  EXPECT_THAT(write_error({{"k", std::vector<std::string>{"a", "\xff"}}}, {}), HasSubstr("element 1: must be UTF-8"));
  EXPECT_THAT(write_error({{"\xff", 1.0}}, {}), HasSubstr("must be UTF-8"));
  EXPECT_THAT(write_error({}, {{std::string(64, 'a'), x}}), HasSubstr("its name must have 1 to 63 bytes, got 64"));
  EXPECT_THAT(write_error({}, {{"a", at::ones({1, 1, 1, 1, 1})}}),
              HasSubstr("tensor \"a\": must have at most 4 dimensions, got shape [1, 1, 1, 1, 1]"));
  EXPECT_THAT(write_error({}, {{"a", x, at::kDouble}}), HasSubstr("can be written as F32, F16 or BF16, got Double"));
  EXPECT_THAT(write_error({}, {{"a", x.to(at::kInt)}}), HasSubstr("must hold floating-point values, got Int"));
  EXPECT_THAT(write_error({}, {{"a", at::Tensor()}}), HasSubstr("tensor \"a\": is undefined"));
  EXPECT_THAT(write_error({}, {{"a", x.to_sparse()}}), HasSubstr("must be dense"));
  EXPECT_THAT(write_error({}, {{"a", at::ones({1}, at::device(at::kMeta))}}), HasSubstr("must be dense"));
  EXPECT_THAT(write_error({}, {{"a", x * 70000, at::kHalf}}),
              HasSubstr("tensor \"a\": Half can not hold its value 70000"));
}

TEST_F(Gguf, BrokenStarts) {
  EXPECT_THAT(error_of(""), HasSubstr("must begin with 24 bytes"));
  EXPECT_THAT(error_of(start(0, 0).substr(0, 23)), HasSubstr("but has 23 in all"));
  EXPECT_THAT(error_of("GGML" + start(0, 0).substr(4)), HasSubstr("must begin with the letters GGUF"));
  EXPECT_THAT(error_of("GGUF" + u32(2) + u64(0) + u64(0)), HasSubstr("its GGUF version must be 3, got 2"));
  EXPECT_THAT(error_of("GGUF" + u32(0x03000000) + u64(0) + u64(0)), HasSubstr("(a big-endian file)"));
  EXPECT_THAT(error_of(start(1, 0)), HasSubstr("the number of tensors is 1, but the file has 8 more bytes"));
  EXPECT_THAT(error_of(start(0, ~0ull)), HasSubstr("the number of keys is 18446744073709551615"));
}

TEST_F(Gguf, BrokenValues) {
  const auto one = [&](const std::string& value) { return error_of(start(0, 1) + value + std::string(32, 'x')); };
  EXPECT_THAT(one(u64(0)), HasSubstr("a key must have 1 to 65535 bytes, got 0"));
  EXPECT_THAT(one(u64(1000)), HasSubstr("a key at byte 32 needs 1000 bytes, but the file has 32 more: is it cut off?"));
  EXPECT_THAT(one(text("k") + u32(13)),
              HasSubstr("key \"k\": the type of its value must be a number from 0 to 12, got 13"));
  EXPECT_THAT(one(text("k") + u32(9) + u32(9)),
              HasSubstr("the type of its elements must be a number from 0 to 12 but 9"));
  EXPECT_THAT(one(text("k") + u32(9) + u32(8) + u64(1ull << 60)),
              HasSubstr("key \"k\": its length is 1152921504606846976"));
  EXPECT_THAT(one(text("k") + u32(7) + "\2"), HasSubstr("key \"k\": a boolean must be 0 or 1, got 2"));
  EXPECT_THAT(error_of(start(0, 2) + text("k") + u32(0) + "a" + text("k") + u32(0) + "a"),
              HasSubstr("key \"k\" appears twice"));
  EXPECT_THAT(one(text("general.alignment") + u32(4) + u32(24)), HasSubstr("a power of 2, got 24"));
  EXPECT_THAT(one(text("general.alignment") + u32(6) + u32(32)), HasSubstr("must be a uint32"));
}

TEST_F(Gguf, BrokenTensors) {
  const auto one = [&](const std::string& entry, const std::string& data = std::string(32, 'x')) {
    return error_of(pad(start(1, 0) + entry) + data);
  };
  EXPECT_EQ(one(tensor_entry("w", {8}, 0, 0)), "no error");
  EXPECT_EQ(one(tensor_entry("w", {1}, 0, 0), "1234"), "no error");  // without the last padding
  EXPECT_THAT(one(tensor_entry("w", {9}, 0, 0)),
              HasSubstr("tensor \"w\": 36 bytes from byte 64 on, but the file has 96"));
  EXPECT_THAT(one(tensor_entry("w", {4}, 0, 0), std::string(64, 'x')), HasSubstr("the tensors end at byte 96"));
  EXPECT_THAT(one(tensor_entry("w", {4}, 0, 8)), HasSubstr("at a multiple of 32, got 8"));
  EXPECT_THAT(one(tensor_entry("w", {4}, 0, 32)), HasSubstr("its data begins at byte 96, must begin at byte 64"));
  EXPECT_THAT(one(tensor_entry("w", {4}, 0, 1ull << 63)), HasSubstr("must begin within the file"));
  EXPECT_THAT(one(tensor_entry("w", {32}, 2, 0)), HasSubstr("got 2, which is quantised or unknown"));
  EXPECT_THAT(one(tensor_entry("w", {1, 1, 1, 1, 1}, 0, 0)), HasSubstr("must have at most 4 dimensions, got 5"));
  EXPECT_THAT(one(tensor_entry("w", {~0ull}, 0, 0)), HasSubstr("size 18446744073709551615 is too large"));
  EXPECT_THAT(one(tensor_entry("w", {1ull << 32, 1ull << 32}, 0, 0)), HasSubstr("more bytes than 64 bits can count"));
  EXPECT_THAT(one(tensor_entry("", {8}, 0, 0)), HasSubstr("its name must have 1 to 64 bytes, got 0"));
  EXPECT_THAT(error_of(pad(start(2, 0) + tensor_entry("w", {8}, 0, 0) + tensor_entry("w", {8}, 0, 32))),
              HasSubstr("tensor \"w\" appears twice"));
  write_gguf_file(path_, {}, {{"w", at::ones({1})}});
  EXPECT_THAT([&] { GgufFile(path_).tensor("b"); },
              testing::ThrowsMessage<Error>(path_.string() + ": has no tensor \"b\" (it has 1 tensors)"));
}

TEST_F(Gguf, AnotherAlignmentIsRead) {
  const std::string header = start(2, 1) + text("general.alignment") + u32(4) + u32(8) + tensor_entry("a", {3}, 1, 0) +
                             tensor_entry("b", {1}, 28, 8);
  std::string file = header;
  file.resize((file.size() + 7) / 8 * 8);
  file += bytes_of(at::tensor({1.0, 2.0, 3.0}).to(at::kHalf)) + "\0\0"s + raw(0.25);
  EXPECT_EQ(error_of(file), "no error");
  const GgufFile opened(path_);
  EXPECT_TRUE(at::equal(opened.tensor("a"), at::tensor({1.0, 2.0, 3.0}).to(at::kHalf)));
  EXPECT_EQ(opened.tensor("b").item<double>(), 0.25);
  EXPECT_THAT(opened.names(), ElementsAre("a", "b"));
}

TEST_F(Gguf, EveryChangedByteAndEveryLengthIsRefusedOrReadWithinBounds) {
  write_gguf_file(
      path_, {{"s", "text"s}, {"l", std::vector<std::string>{"a", "bc"}}, {"b", true}, {"v", std::vector<float>{1, 2}}},
      {{"w", at::randn({3, 2})}, {"h", at::ones({5}), at::kHalf}});
  const std::string good = read();
  EXPECT_EQ(error_of(good), "no error");
  const size_t last_padding = 32 - 10;
  for (size_t length = 0; length < good.size(); ++length) {
    const bool whole = length == good.size() - last_padding;
    EXPECT_EQ(error_of(good.substr(0, length)) == "no error", whole) << length;
  }
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bits = 1; bits < 256; bits = bits < 16 ? bits + 1 : bits * 2 + 1) {
      std::string changed = good;
      changed[at] = static_cast<char>(changed[at] ^ bits);
      error_of(changed);
    }
  }
  EXPECT_NE(error_of(good + "x"), "no error");
}

// The package gguf, from the interpreter that ADDER_LLAMA_CPP_PYTHON names or .venv's, reads our file and writes one.
TEST_F(Gguf, ThePackageReadsOurFilesAndWeReadItsFiles) {
  const char* named = std::getenv("ADDER_LLAMA_CPP_PYTHON");
  const std::string python = named ? named : std::string(ADDER_SOURCE_DIR) + "/.venv/bin/python";
  if (!fs::exists(python)) GTEST_SKIP() << "no Python at " << python;
  const auto run = [&](const std::string& arguments) {
    const int status = std::system(("cd '" + folder_.string() + "' && '" + python + "' " + arguments).c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  };
  if (run("-c 'import gguf, numpy' 2>/dev/null") != 0)
    GTEST_SKIP() << python << " has no package gguf (ADDER_LLAMA_CPP_PYTHON names another Python)";
  const at::Tensor counting = at::arange(6, at::kFloat).view({2, 3});
  GgufMetadata metadata = every_value();
  metadata.insert(metadata.begin(), {"general.architecture", "mamba"s});
  write_gguf_file(path_, metadata,
                  {{"f", counting, at::kFloat}, {"h", counting, at::kHalf}, {"b", counting, at::kBFloat16}});
  core::write_file_atomically(folder_ / "script.py", R"(
import gguf, numpy as np
r = gguf.GGUFReader("x.gguf")
got = {k: f.contents() for k, f in r.fields.items()}
want = {"a.u8": 255, "a.i8": -128, "a.u16": 65535, "a.i16": -32768, "a.u32": 4000000000, "a.i32": -2000000000,
        "a.u64": 2**63, "a.i64": -2**62, "a.f32": float(np.float32(0.1)), "a.f64": 0.1, "a.yes": True, "a.no": False,
        "a.text": "\u00e9 \"\n\0x", "v.u8": [1, 2, 3], "v.i8": [-1], "v.u16": [500], "v.i16": [-500, 7],
        "v.u32": [70000], "v.i32": [-70000, 1], "v.u64": [2**40], "v.i64": [-1], "v.f32": [1.5, -2.0], "v.f64": [0.3],
        "v.bool": [True, False, True], "v.text": ["one", "", "\u0120t"], "general.architecture": "mamba"}
for key, value in want.items():
    assert got[key] == value, (key, got[key], value)
assert len(got) == len(want) + 3, got.keys()
counting = np.arange(6, dtype=np.float32).reshape(2, 3)
t = {x.name: x for x in r.tensors}
assert [list(x.shape) for x in r.tensors] == [[3, 2]] * 3 and r.alignment == 32
assert (t["f"].data == counting).all() and (t["h"].data == counting.astype(np.float16)).all()
assert (t["b"].data.view(np.uint16) == (counting.view(np.uint32) >> 16)).all()
assert all(x.data_offset % 32 == 0 for x in r.tensors)

w = gguf.GGUFWriter("theirs.gguf", "mamba")
w.add_block_count(2)
w.add_token_list(["a", "\u0120"])
w.add_array("v", [0.5, 1.5])
w.add_tensor("w", counting)
w.add_tensor("i", np.array([[1], [-1]], np.int64))
w.add_tensor("h", counting.astype(np.float16))
w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
)");
  ASSERT_EQ(run("script.py"), 0);
  const GgufFile file(folder_ / "theirs.gguf");
  EXPECT_THAT(file.names(), ElementsAre("w", "i", "h"));
  EXPECT_TRUE(at::equal(file.tensor("w"), counting));
  EXPECT_TRUE(at::equal(file.tensor("h"), counting.to(at::kHalf)));
  EXPECT_TRUE(at::equal(file.tensor("i"), at::tensor({int64_t{1}, int64_t{-1}}).view({2, 1})));
  ASSERT_NE(file.value("mamba.block_count"), nullptr);
  EXPECT_EQ(*file.value("mamba.block_count"), GgufValue(uint32_t{2}));
  EXPECT_EQ(*file.value("tokenizer.ggml.tokens"), GgufValue(std::vector<std::string>{"a", "\xc4\xa0"}));
  EXPECT_EQ(*file.value("v"), GgufValue(std::vector<float>{0.5f, 1.5f}));
}

}  // namespace
}  // namespace adder::weights
