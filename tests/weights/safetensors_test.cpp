#include "adder/weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

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
using Tensors = std::vector<std::pair<std::string, at::Tensor>>;

const std::vector<at::ScalarType> kDtypes = {at::kDouble, at::kFloat,        at::kHalf,   at::kBFloat16, at::kLong,
                                             at::kInt,    at::kShort,        at::kChar,   at::kByte,     at::kBool,
                                             at::kUInt16, at::kComplexFloat, at::kUInt32, at::kUInt64};

std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor plain = tensor.contiguous();
  return {static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()};
}

// Any bit pattern that the dtype allows, among them NaNs and infinities.
at::Tensor random_bits(at::ScalarType dtype, at::IntArrayRef shape) {
  if (dtype == at::kBool) return at::randint(0, 2, shape).to(at::kBool);
  const at::Tensor tensor = at::empty(shape, dtype);
  const at::Tensor bits = at::randint(0, 256, {static_cast<int64_t>(tensor.nbytes())}).to(at::kByte);
  if (tensor.nbytes() > 0) std::memcpy(tensor.mutable_data_ptr(), bits.const_data_ptr(), tensor.nbytes());
  return tensor;
}

std::string file_of(const std::string& header, const std::string& data = "") {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_safetensors_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
    path_ = folder_ / "x.safetensors";
    torch::manual_seed(1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  // The error on opening these bytes, without the path that it must begin with.
  std::string error_of(const std::string& contents) const {
    core::write_file_atomically(path_, contents);
    return error_behind(path_.string() + ": ", [&] { SafetensorsFile file(path_); });
  }

  std::string error_of_header(const std::string& header, const std::string& data = "") const {
    return error_of(file_of(header, data));
  }

  std::string read() const {
    const core::MappedFile file(path_);
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
  }

  fs::path folder_, path_;
};

TEST_F(Safetensors, EveryDtypeAndShapeComesBack) {
  const std::vector<std::vector<int64_t>> shapes = {{}, {0}, {1}, {7}, {3, 5}, {2, 0, 3}, {2, 1, 3, 5}, {129, 33}};
  Tensors tensors;
  for (const at::ScalarType dtype : kDtypes) {
    for (const auto& shape : shapes) {
      tensors.emplace_back(fmt::format("t.{}.{}", c10::toString(dtype), tensors.size()), random_bits(dtype, shape));
    }
  }
  write_safetensors(path_, tensors, {{"format", "pt"}, {"key \"é\"\n", ""}});
  const SafetensorsFile file(path_);
  EXPECT_EQ(file.names().size(), tensors.size());
  EXPECT_EQ(file.metadata(), (Metadata{{"format", "pt"}, {"key \"é\"\n", ""}}));
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor got = file.tensor(name);
    EXPECT_EQ(got.scalar_type(), tensor.scalar_type()) << name;
    EXPECT_EQ(got.sizes(), tensor.sizes()) << name;
    EXPECT_TRUE(got.is_contiguous()) << name;
    EXPECT_EQ(bytes_of(got), bytes_of(tensor)) << name;
    EXPECT_EQ(tensor_hash(got), tensor_hash(tensor)) << name;
  }
}

TEST_F(Safetensors, NoTensorsAndNoMetadata) {
  write_safetensors(path_, {});
  const SafetensorsFile file(path_);
  EXPECT_TRUE(file.names().empty());
  EXPECT_TRUE(file.metadata().empty());
  EXPECT_EQ(read(), file_of("{}      "));
}

TEST_F(Safetensors, WiderTypesComeFirstThenNames) {
  write_safetensors(path_, {{"b", at::ones({3}, at::kHalf)},
                            {"a", at::ones({1}, at::kByte)},
                            {"d", at::ones({1}, at::kFloat)},
                            {"c", at::ones({1}, at::kFloat)},
                            {"empty", at::ones({0}, at::kFloat)}});
  const SafetensorsFile file(path_);
  EXPECT_THAT(file.names(), ElementsAre("c", "d", "empty", "b", "a"));
  EXPECT_TRUE(file.contains("a"));
  EXPECT_FALSE(file.contains("e"));
}

TEST_F(Safetensors, StridedAndLazyTensorsAreWrittenAsTheirValues) {
  const at::Tensor base = at::randn({6, 10}, at::requires_grad());
  const at::Tensor complex = at::randn({4, 3}, at::kComplexFloat);
  const Tensors tensors = {{"transposed", base.t()},
                           {"slice", base.slice(1, 1, 9, 3)},
                           {"expanded", base[0].expand({4, 10})},
                           {"conjugate", complex.conj()},
                           {"negative", at::imag(complex.conj())}};
  write_safetensors(path_, tensors);
  const SafetensorsFile file(path_);
  for (const auto& [name, tensor] : tensors) {
    EXPECT_TRUE(at::equal(file.tensor(name), tensor.detach())) << name;
    EXPECT_EQ(tensor_hash(tensor), tensor_hash(file.tensor(name))) << name;
  }
}

TEST_F(Safetensors, TensorsAreViewsThatOutliveTheFile) {
  const at::Tensor written = at::randn({1000});
  write_safetensors(path_, {{"x", written}});
  at::Tensor view, same;
  {
    const SafetensorsFile file(path_);
    view = file.tensor("x");
    same = file.tensor("x");
  }
  EXPECT_EQ(view.const_data_ptr(), same.const_data_ptr());
  same.reset();
  core::write_file_atomically(path_, "gone");
  EXPECT_TRUE(at::equal(view, written));
}

TEST_F(Safetensors, UnalignedDataIsCopied) {
  const float values[2] = {1.5f, -2.0f};
  const std::string data(reinterpret_cast<const char*>(values), 8);
  for (const char* spaces : {"", " ", "  ", "   "}) {
    const std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    core::write_file_atomically(path_, file_of(header + spaces, data));
    const at::Tensor x = SafetensorsFile(path_).tensor("x");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 4, 0u);
    EXPECT_TRUE(at::equal(x, at::tensor({1.5f, -2.0f})));
  }
}

TEST_F(Safetensors, ForeignOrderAndSpacesAreRead) {
  const std::string header =
      "{\n \"b\" : {\"data_offsets\":[1, 3],\"shape\":[ 1,1 ], \"dtype\":\"I16\"},\t\"\\u0061\":"
      "{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}}  \n";
  core::write_file_atomically(path_, file_of(header, std::string("\x05\x01\x02", 3)));
  const SafetensorsFile file(path_);
  EXPECT_THAT(file.names(), ElementsAre("a", "b"));
  EXPECT_EQ(file.tensor("a").item<int64_t>(), 5);
  EXPECT_EQ(file.tensor("b").sizes(), (std::vector<int64_t>{1, 1}));
  EXPECT_EQ(file.tensor("b").item<int64_t>(), 513);
}

TEST_F(Safetensors, BrokenFrames) {
  EXPECT_THAT(error_of(""), HasSubstr("must begin with a length of 8 bytes, but has 0"));
  EXPECT_THAT(error_of("1234567"), HasSubstr("but has 7 in all"));
  EXPECT_THAT(error_of(std::string(8, '\xff')), HasSubstr("must be at most 100000000, got 18446744073709551615"));
  EXPECT_THAT(error_of(file_of(std::string(20, ' ')).substr(0, 20)), HasSubstr("ends at byte 28, but the file has 20"));
  EXPECT_THAT(error_of_header(""), HasSubstr("must begin with '{' at byte 8"));
  EXPECT_THAT(error_of_header(" {}"), HasSubstr("must begin with '{' at byte 8"));
  EXPECT_THAT(error_of_header("PK"), HasSubstr("not a safetensors file"));
  EXPECT_THAT(error_of_header("{}", "x"), "the tensors end at byte 10, but the file has 11 bytes");
  const std::string path = (folder_ / "none").string();
  EXPECT_THAT([&] { SafetensorsFile file(path); }, testing::ThrowsMessage<Error>(HasSubstr("'" + path + "'")));
}

TEST_F(Safetensors, BrokenJson) {
  EXPECT_THAT(error_of_header("{"), HasSubstr("the header is not valid JSON at byte 9"));
  EXPECT_THAT(error_of_header("{}}"), HasSubstr("the header is not valid JSON at byte 10"));
  EXPECT_THAT(error_of_header("{\"\xff\":{}}"), HasSubstr("the header is not valid JSON at byte 10"));
  EXPECT_THAT(error_of_header(R"({"\ud800":{}})"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of_header(std::string("{}\0", 3)), HasSubstr("at byte 10: a zero byte"));
  EXPECT_THAT(error_of_header(R"({"x":1e999})"), HasSubstr("not valid JSON"));
  EXPECT_THAT(error_of_header("{/**/}"), HasSubstr("not valid JSON"));
  EXPECT_LT(error_of_header("{\"" + std::string(100000, 'a')).size(), 400u);
}

TEST_F(Safetensors, BrokenForm) {
  const auto field = [&](const std::string& body) { return error_of_header("{\"w\":{" + body + "}}"); };
  EXPECT_EQ(error_of_header(R"({"w":1})"), "header, before byte 15: \"w\" must be an object, got a number");
  EXPECT_THAT(error_of_header(R"({"w":[]})"), HasSubstr("\"w\" must be an object, got an array"));
  EXPECT_THAT(error_of_header(R"({"w":null})"), HasSubstr("\"w\" must be an object, got null"));
  EXPECT_THAT(field(""), HasSubstr("tensor \"w\": dtype is missing"));
  EXPECT_THAT(field(R"("dtype":"U8","shape":[])"), HasSubstr("tensor \"w\": data_offsets is missing"));
  EXPECT_THAT(field(R"("dtype":"U8","data_offsets":[0,1])"), HasSubstr("tensor \"w\": shape is missing"));
  EXPECT_THAT(field(R"("dtype":"F8")"), HasSubstr("dtype must be one of BOOL, U8, I8, I16"));
  EXPECT_THAT(field(R"("dtype":"F8")"), HasSubstr("got \"F8\""));
  EXPECT_THAT(field(R"("dtype":{})"), HasSubstr("tensor \"w\": dtype must be a string, got an object"));
  EXPECT_THAT(field(R"("dtype":3)"), HasSubstr("tensor \"w\": dtype must be a string, got a number"));
  EXPECT_THAT(field(R"("shape":"3")"), HasSubstr("tensor \"w\": shape must be an array, got a string"));
  EXPECT_THAT(field(R"("shape":[-1])"), HasSubstr("shape must hold whole numbers from 0, got a negative number"));
  EXPECT_THAT(field(R"("shape":[-0])"), HasSubstr("got a negative number"));
  EXPECT_THAT(field(R"("shape":[1.0])"), HasSubstr("shape must hold whole numbers from 0, got a fraction"));
  EXPECT_THAT(field(R"("shape":[18446744073709551616])"), HasSubstr("beyond 64 bits"));
  EXPECT_THAT(field(R"("shape":[18446744073709551615])"), HasSubstr("18446744073709551615 in shape is too large"));
  EXPECT_THAT(field(R"("shape":[[1]])"), HasSubstr("shape must hold whole numbers from 0, got an array"));
  EXPECT_THAT(field(R"("shape":[true])"), HasSubstr("got a boolean"));
  EXPECT_THAT(field(R"("data_offsets":[1])"), HasSubstr("data_offsets must be 2 numbers, got 1"));
  EXPECT_THAT(field(R"("data_offsets":[1,2,3])"), HasSubstr("data_offsets must be 2 numbers"));
  EXPECT_THAT(field(R"("color":1)"), HasSubstr("tensor \"w\": unknown field \"color\""));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{"a":1}})"),
              HasSubstr("__metadata__: \"a\" must be a string, got a number"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{"a":{}}})"), HasSubstr("must be a string, got an object"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":"a"})"),
              HasSubstr("\"__metadata__\" must be an object, got a string"));
}

TEST_F(Safetensors, Duplicates) {
  const std::string empty = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  EXPECT_THAT(error_of_header("{\"a\":" + empty + ",\"a\":" + empty + "}"), HasSubstr("tensor \"a\" appears twice"));
  EXPECT_THAT(error_of_header("{\"a\":" + empty + ",\"\\u0061\":" + empty + "}"), HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{"k":"1","k":"2"}})"),
              HasSubstr("__metadata__: key \"k\" appears twice"));
  EXPECT_THAT(error_of_header(R"({"__metadata__":{},"__metadata__":{}})"), HasSubstr("appears twice"));
  EXPECT_THAT(error_of_header(R"({"a":{"shape":[],"shape":[]}})"), HasSubstr("field shape appears twice"));
}

TEST_F(Safetensors, BrokenLayouts) {
  const auto entry = [](const std::string& name, const std::string& shape, const std::string& offsets) {
    return fmt::format(R"("{}":{{"dtype":"I16","shape":{},"data_offsets":{}}})", name, shape, offsets);
  };
  const auto one = [&](const std::string& shape, const std::string& offsets) {
    return error_of_header("{" + entry("w", shape, offsets) + "}", "12345678");
  };
  EXPECT_EQ(one("[4]", "[0,8]"), "no error");
  EXPECT_EQ(one("[3]", "[0,8]"), "tensor \"w\": I16 [3] takes 6 bytes, but data_offsets [0, 8] hold 8");
  EXPECT_THAT(one("[4]", "[8,0]"), HasSubstr("data_offsets must not fall, got [8, 0]"));
  EXPECT_THAT(one("[5]", "[0,10]"), AllOf(HasSubstr("its data ends 10 bytes after byte"), HasSubstr("is it cut off?")));
  EXPECT_THAT(one("[3]", "[2,8]"), HasSubstr("which leaves a hole after the start of the data"));
  EXPECT_THAT(one("[3]", "[0,6]"), HasSubstr("the tensors end at byte"));
  EXPECT_THAT(one("[4294967296,4294967296]", "[0,8]"), HasSubstr("has more bytes than 64 bits can count"));
  EXPECT_THAT(one("[0,4611686018427387904,4]", "[0,0]"), HasSubstr("has more bytes than 64 bits can count"));
  EXPECT_THAT(one("[9223372036854775807]", "[0,8]"), HasSubstr("has more bytes"));
  EXPECT_THAT(one("[2,2]", "[9223372036854775800,9223372036854775807]"), HasSubstr("hold 7"));
  EXPECT_THAT(one("[4]", "[9223372036854775799,9223372036854775807]"), HasSubstr("is it cut off?"));

  const auto two = [&](const std::string& first, const std::string& second) {
    return error_of_header("{" + entry("a", "[2]", first) + "," + entry("b", "[2]", second) + "}", "12345678");
  };
  EXPECT_EQ(two("[4,8]", "[0,4]"), "no error");
  EXPECT_THAT(two("[0,4]", "[2,6]"), AllOf(HasSubstr("tensor \"b\""), HasSubstr("overlaps that of \"a\"")));
  EXPECT_THAT(two("[0,4]", "[0,4]"), HasSubstr("overlaps"));
}

TEST_F(Safetensors, DeepAndWideHeadersAreRefusedCheaply) {
  const std::string open(1'000'000, '[');
  EXPECT_THAT(error_of_header("{\"w\":" + open), HasSubstr("must be an object, got an array"));
  EXPECT_THAT(error_of_header("{\"w\":{\"shape\":" + open), HasSubstr("must hold whole numbers from 0, got an array"));
  std::string ones = "1";
  for (int i = 1; i < 65; ++i) ones += ",1";
  EXPECT_THAT(error_of_header("{\"w\":{\"shape\":[" + ones + "]}}"), HasSubstr("at most 64 dimensions"));
}

TEST_F(Safetensors, BoolsMustBeZeroOrOne) {
  core::write_file_atomically(
      path_, file_of(R"({"m":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}})", std::string("\0\1\2", 3)));
  const SafetensorsFile file(path_);
  EXPECT_THAT([&] { file.tensor("m"); },
              testing::ThrowsMessage<Error>(AllOf(HasSubstr("tensor \"m\""), HasSubstr("got 2 at byte 65"))));
}

TEST_F(Safetensors, UnknownNames) {
  write_safetensors(path_, {{"a", at::ones({1})}});
  const SafetensorsFile file(path_);
  EXPECT_THAT([&] { file.tensor("b"); },
              testing::ThrowsMessage<Error>(path_.string() + ": has no tensor \"b\" (it has 1 tensors)"));
}

TEST_F(Safetensors, WhatCannotBeWritten) {
  const auto error = [&](const Tensors& tensors, const Metadata& metadata = {}) -> std::string {
    try {
      write_safetensors(path_, tensors, metadata);
    } catch (const Error& e) {
      EXPECT_FALSE(fs::exists(path_));
      return e.what();
    }
    return "no error";
  };
  const at::Tensor x = at::ones({1});
  EXPECT_THAT(error({{"a", x}, {"a", x}}), HasSubstr("tensor \"a\" is given twice"));
  EXPECT_THAT(error({{"__metadata__", x}}), HasSubstr("no tensor can be called __metadata__"));
  EXPECT_THAT(error({{"\xff", x}}), HasSubstr("must be UTF-8"));
  EXPECT_THAT(error({{"a", x}}, {{"k", "\xff"}}), HasSubstr("must be UTF-8"));
  EXPECT_THAT(error({{"a", at::Tensor()}}), HasSubstr("tensor \"a\": is undefined"));
  EXPECT_THAT(error({{"a", x.to_sparse()}}), HasSubstr("must be dense"));
  EXPECT_THAT(error({{"a", at::ones({1}, at::device(at::kMeta))}}), HasSubstr("must be dense"));
  EXPECT_THAT(error({{"a", x.to(at::kComplexDouble)}}), HasSubstr("got ComplexDouble"));
}

TEST_F(Safetensors, HashesTellDtypeShapeAndValuesApart) {
  const at::Tensor x = at::zeros({2, 3});
  EXPECT_NE(tensor_hash(x), tensor_hash(x.view({3, 2})));
  EXPECT_NE(tensor_hash(x), tensor_hash(x.view(at::kInt)));
  EXPECT_NE(tensor_hash(x), tensor_hash(at::where(x == 0, -0.0, x).to(at::kFloat)));
  EXPECT_EQ(tensor_hash(x), tensor_hash(x.clone()));
  EXPECT_NE(tensor_hash(at::empty({0})), tensor_hash(at::empty({0, 1})));
}

// Reads everything that a file claims to hold, so that anything out of bounds would be touched.
void touch_all(const fs::path& path) {
  const SafetensorsFile file(path);
  for (const std::string& name : file.names()) {
    const at::Tensor tensor = file.tensor(name);
    const std::string bytes = bytes_of(tensor);
    EXPECT_EQ(bytes.size(), static_cast<size_t>(tensor.numel()) * tensor.element_size());
  }
}

TEST_F(Safetensors, EveryChangedByteAndEveryLengthIsRefusedOrReadWithinBounds) {
  write_safetensors(path_,
                    {{"w", at::randn({3, 2})},
                     {"m", at::ones({5}, at::kBool)},
                     {"é", at::ones({}, at::kHalf)},
                     {"none", at::ones({0, 4})}},
                    {{"format", "pt"}});
  const std::string good = read();
  const fs::path path = folder_ / "changed.safetensors";
  int64_t refused = 0, tried = 0;
  const auto attempt = [&](const std::string& contents) {
    fs::remove(path);  // overwriting a file in place waits for the disk
    core::FileWriter(path, path).write(contents);
    ++tried;
    try {
      // From a buffer without slack first, where a sanitizer sees every byte read beyond it.
      const std::vector<char> exact(contents.begin(), contents.end());
      parse_header(std::as_bytes(std::span(exact)), path.string());
      touch_all(path);
      return true;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
      ++refused;
      return false;
    }
  };
  EXPECT_TRUE(attempt(good));
  for (size_t length = 0; length < good.size(); ++length) EXPECT_FALSE(attempt(good.substr(0, length))) << length;
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bits = 1; bits < 256; bits = bits < 16 ? bits + 1 : bits * 2 + 1) {
      std::string changed = good;
      changed[at] = static_cast<char>(changed[at] ^ bits);
      attempt(changed);
    }
  }
  EXPECT_FALSE(attempt(good + "x"));
  EXPECT_GT(refused, tried / 2);
}

}  // namespace
}  // namespace adder::weights
