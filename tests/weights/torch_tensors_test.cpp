// Checkpoints made by hand, and what is refused about their tensors.
#include "adder/weights/torch_tensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <string>

#include "adder/core/error.h"
#include "adder/weights/stored_zip.h"
#include "adder/weights/torch_file.h"
#include "tests/error_of.h"
#include "tests/weights/torch_fixture.h"

namespace adder::weights {
namespace {
namespace fs = std::filesystem;

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;

const std::string kEight = storage_op("FloatStorage", "0", 8);  // 0, 1, ... 7
const View kPlain = {0, {2, 4}, {4, 1}};

class TorchTensors : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "adder_torch_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // An archive whose storage "0" is eight floats, with this object.
  TorchFile open(const std::string& object) const {
    const at::Tensor values = at::arange(8, at::kFloat);
    const std::string data(static_cast<const char*>(values.const_data_ptr()), values.nbytes());
    return open_bytes(stored_zip({{"a/data.pkl", pickled(object)}, {"a/byteorder", "little"}, {"a/data/0", data}}));
  }

  TorchFile open_bytes(const std::string& bytes) const {
    const fs::path path = folder_ / "x.pt";
    fs::remove(path);
    core::FileWriter(path, path).write(bytes);
    return TorchFile(path);
  }

  template <typename Action>
  std::string error_of(Action&& action) const {
    return error_behind((folder_ / "x.pt").string() + ": ", action);
  }

  std::string error_of_object(const std::string& object) const {
    return error_of([&] { open(object); });
  }
  std::string error_of_bytes(const std::string& bytes) const {
    return error_of([&] { open_bytes(bytes); });
  }
  // Of a dict with this tensor under "w".
  std::string error_of_tensor(const std::string& tensor) const {
    return error_of_object("}" + text_op("w") + tensor + "s");
  }
  std::string error_of_view(const View& view) const { return error_of_tensor(tensor_op(kEight, view)); }

  fs::path folder_;
};

std::string entry_op(std::string_view key, const std::string& value) {
  return text_op(key) + value + "s";
}

std::string legacy_system(const std::string& little_endian) {
  return pickled("}" + entry_op("little_endian", little_endian));
}

const std::string kLegacyMagic = pickled("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19");
const std::string kLegacyProtocol = pickled("M\xe9\3");
const std::string kLegacyStart = kLegacyMagic + kLegacyProtocol + legacy_system("\x88");

TEST_F(TorchTensors, NamesOfNestedDictsAreJoinedAndTheRestIsLeftOut) {
  const std::string w = tensor_op(kEight, kPlain);
  const std::string list = "]" + w + "a", parameter = "ctorch._utils\n_rebuild_parameter\n(" + w + "\x88}tR";
  const std::string stated = "ctorch._utils\n_rebuild_parameter_with_state\n(" + w + "\x88}}tR";
  const TorchFile file =
      open("}" + entry_op("b", w) + entry_op("a", "}" + entry_op("x", parameter) + entry_op("y", "}K\5" + w + "s")) +
           entry_op("list", list) + entry_op("step", "K\3") + entry_op("none", "N") +
           entry_op("big", "\x8a\x09zzzzzzzzz") + entry_op("size", "ctorch\nSize\nK\1\x85\x85R") +
           entry_op("dtype", "ctorch\nfloat32\n") + "K\1" + w + "s" + "N" + w + "s" + entry_op("", stated));
  EXPECT_THAT(file.names(), ElementsAre("b", "a.x", "a.y.5", "1", ""));
  for (const std::string& name : file.names()) {
    EXPECT_TRUE(at::equal(file.tensor(name), at::arange(8, at::kFloat).view({2, 4}))) << name;
  }
  EXPECT_TRUE(file.contains("a.y.5"));
  EXPECT_FALSE(file.contains("list"));
  EXPECT_EQ(error_of([&] { file.tensor("list"); }), "has no tensor \"list\" (it has 5 tensors)");
}

TEST_F(TorchTensors, TheStateDictIsFoundByItsName) {
  const std::string w = tensor_op(kEight, kPlain);
  const std::string other = entry_op("optimizer", "}" + entry_op("moment", w)), dict = "}" + entry_op("model.w", w);
  EXPECT_THAT(open("}" + other + entry_op("state_dict", dict)).names(), ElementsAre("model.w"));
  EXPECT_THAT(open("}" + other + entry_op("model", dict)).names(), ElementsAre("model.w"));
  EXPECT_THAT(open("}" + entry_op("model", "}") + entry_op("state_dict", dict)).names(), ElementsAre("model.w"));
  EXPECT_THAT(open("}" + other + entry_op("model", w)).names(), ElementsAre("optimizer.moment", "model"));
  EXPECT_EQ(error_of_object("}" + other + entry_op("state_dict", "}")), "its state dict holds no tensors");
  EXPECT_EQ(error_of_object("}"), "its state dict holds no tensors");
  EXPECT_EQ(error_of_object("]" + w + "a"), "must hold a dict of tensors, got a list");
  EXPECT_EQ(error_of_object(w), "must hold a dict of tensors, got an object");
  EXPECT_THAT(error_of_object("}" + entry_op("a.b", w) + entry_op("a", "}" + entry_op("b", w))),
              HasSubstr("tensor \"a.b\" appears twice"));
}

TEST_F(TorchTensors, DictsThatNameTooMuchAreRefused) {
  const std::string w = tensor_op(kEight, kPlain);
  EXPECT_THAT(error_of_object("}q\0"s + entry_op("w", w) + entry_op("x", "h\0"s)),
              HasSubstr("dicts must be nested at most 64 deep, got more at \"x.x.x."));
  std::string deep;
  for (int i = 0; i < 1'000'000; ++i) deep += "}K\1";
  EXPECT_THAT(error_of_object(deep + "N" + std::string(1'000'000, 's')), HasSubstr("nested at most 64 deep"));
  // Twice the names at every level, 2^60 in all; with and without tensors.
  for (const std::string& leaf : {w, "}"s}) {
    std::string twice = "}" + entry_op("w", leaf);
    for (char i = 0; i < 60; ++i) twice += "q"s + i + "0}K\1h" + i + "sK\2h" + i + "s";
    EXPECT_THAT(error_of_object(twice), HasSubstr("are far longer than the pickle that holds them"));
  }
  std::string long_names = "}" + text_op(std::string(100'000, 'a')) + "}";
  for (int i = 0; i < 10'000; ++i) long_names += "J" + raw(i) + "}s";
  EXPECT_THAT(error_of_object(long_names + "s"), HasSubstr("are far longer than the pickle"));
}

TEST_F(TorchTensors, ViewsWithinTheStorage) {
  const at::Tensor all = at::arange(8, at::kFloat);
  const View views[] = {kPlain,
                        {0, {4, 2}, {1, 4}},
                        {7, {}, {}},
                        {0, {8}, {1}},
                        {3, {2, 2}, {2, 1}},
                        {5, {1000}, {0}},
                        {1, {3, 2}, {1, 1}},
                        {7, {1, 1}, {1000, 1000}}};
  for (const View& view : views) {
    const at::Tensor got = open("}" + entry_op("w", tensor_op(kEight, view))).tensor("w");
    EXPECT_EQ(got.strides(), view.strides);
    EXPECT_TRUE(at::equal(got, all.as_strided(view.sizes, view.strides, view.offset)));
  }
  EXPECT_EQ(open("}" + entry_op("w", tensor_op(kEight, {0, {3, 0}, {1, 1}}))).tensor("w").sizes(),
            (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(open("}" + entry_op("w", tensor_op(kEight, kPlain, ""))).tensor("w").sizes(), kPlain.sizes);
}

// With strides of 0 a few bytes are a tensor of any size: nothing may be computed from it before it is asked for.
TEST_F(TorchTensors, ExpandedTensorsTakeNoMemory) {
  const View expanded{0, {int64_t{1} << 40}, {0}};
  const std::string negated = "}" + text_op("neg") + "\x88s", conjugated = "}" + text_op("conj") + "\x88s";
  const TorchFile file =
      open("}" + entry_op("n", tensor_op(kEight, expanded, "_v2", negated)) +
           entry_op("c", tensor_op(storage_op("ComplexFloatStorage", "0", 4), expanded, "_v2", conjugated)));
  EXPECT_EQ(file.tensor("n").narrow(0, 7, 1).item<float>(), -0.0f);
  EXPECT_EQ(at::imag(file.tensor("c").narrow(0, 7, 1)).item<float>(), -1.0f);
}

TEST_F(TorchTensors, TensorsOfAStorageOnOddAddressesShareOneCopy) {
  for (const std::string root : {"a", "ab", "abc", "abcd"}) {  // each puts the data on another address
    const at::Tensor values = at::arange(8, at::kFloat);
    const std::string data(static_cast<const char*>(values.const_data_ptr()), values.nbytes());
    const std::string object =
        "}" + entry_op("v", tensor_op(kEight, kPlain)) + entry_op("w", tensor_op(kEight, {4, {4}, {1}}));
    const TorchFile file = open_bytes(stored_zip({{root + "/data.pkl", pickled(object)}, {root + "/data/0", data}}));
    const at::Tensor v = file.tensor("v"), w = file.tensor("w");
    EXPECT_TRUE(at::equal(v.flatten(), values)) << root;
    EXPECT_TRUE(at::equal(w, values.narrow(0, 4, 4))) << root;
    EXPECT_EQ(v.const_data_ptr<float>() + 4, w.const_data_ptr<float>()) << root;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(v.const_data_ptr()) % sizeof(float), 0u) << root;
  }
}

TEST_F(TorchTensors, ViewsBeyondTheStorage) {
  EXPECT_THAT(error_of_view({0, {9}, {1}}),
              AllOf(HasSubstr("tensor \"w\" (pickle, at byte "),
                    HasSubstr("shape [9], strides [1], offset 0 end at element 8, but storage \"0\" has 32 bytes")));
  EXPECT_THAT(error_of_view({1, {8}, {1}}), HasSubstr("end at element 8"));
  EXPECT_THAT(error_of_view({8, {}, {}}), HasSubstr("end at element 8"));
  EXPECT_THAT(error_of_view({0, {2, 4}, {5, 1}}), HasSubstr("end at element 8"));
  EXPECT_THAT(error_of_view({INT64_MAX, {1}, {1}}), HasSubstr("end at element 9223372036854775807"));
  EXPECT_THAT(error_of_view({0, {2}, {INT64_MAX}}), HasSubstr("end at element 9223372036854775807"));
  EXPECT_THAT(error_of_view({1, {2}, {INT64_MAX}}), HasSubstr("are more than 64 bits can count"));
  EXPECT_THAT(error_of_view({0, {INT64_MAX}, {0}}), HasSubstr("are more than 64 bits can count"));
  EXPECT_THAT(error_of_view({0, {int64_t{1} << 31, int64_t{1} << 31}, {0, 0}}), HasSubstr("more than 64 bits"));
  EXPECT_THAT(error_of_view({0, {0, INT64_MAX}, {0, 0}}), HasSubstr("more than 64 bits"));
  EXPECT_THAT(error_of_view({-1, {2}, {1}}), HasSubstr("offset must be a whole number from 0, got -1"));
  EXPECT_THAT(error_of_view({0, {-1}, {1}}), HasSubstr("shape must be a whole number from 0, got -1"));
  EXPECT_THAT(error_of_view({7, {2}, {-1}}), HasSubstr("strides must be a whole number from 0, got -1"));
  EXPECT_THAT(error_of_view({0, {2}, {1, 1}}), HasSubstr("must have as many strides as sizes"));
  const std::vector<int64_t> ones(65, 1);
  EXPECT_THAT(error_of_view({0, ones, ones}), HasSubstr("shape must have at most 64 dimensions, got 65"));
}

TEST_F(TorchTensors, BrokenTensors) {
  const std::string v2 = "ctorch._utils\n_rebuild_tensor_v2\n";
  EXPECT_THAT(error_of_tensor(v2 + ")R"), HasSubstr("must have 4 arguments, got 0"));
  EXPECT_THAT(error_of_tensor(v2 + "(K\1K\1K\1K\1tR"), HasSubstr("the storage must be a storage, got an integer"));
  EXPECT_THAT(error_of_tensor(v2 + "(" + kEight + "NNNtR"),
              HasSubstr("offset must be a whole number from 0, got None"));
  EXPECT_THAT(error_of_tensor(v2 + "(" + kEight + "K\1NNtR"), HasSubstr("shape must be a tuple, got None"));
  EXPECT_THAT(error_of_tensor(v2 + "(" + kEight + "K\1K\1\x85NtR"), HasSubstr("strides must be a tuple, got None"));
  EXPECT_THAT(error_of_tensor(v2 + "(" + kEight + "K\1\x88\x85NtR"), HasSubstr("got a bool"));
  const auto typed = [](const std::string& last) { return tensor_op(kEight, {0, {8}, {1}}, "_v3", last); };
  EXPECT_EQ(error_of_tensor(typed("ctorch\nint32\n")), "no error");
  EXPECT_THAT(error_of_tensor(typed("ctorch\nfloat64\n")),
              HasSubstr("end at element 7, but storage \"0\" has 32 bytes"));
  EXPECT_THAT(error_of_tensor(typed("ctorch\nSize\n")), HasSubstr("dtype cannot be torch.Size"));
  EXPECT_THAT(error_of_tensor(typed("N")), HasSubstr("dtype must be a class or function, got None"));
  EXPECT_THAT(error_of_tensor(typed("")), HasSubstr("must have 7 arguments, got 6"));
  const auto flagged = [](const char* flag) {
    return tensor_op(kEight, {0, {8}, {1}}, "_v2", "}" + text_op(flag) + "\x88s");
  };
  EXPECT_TRUE(at::equal(open("}" + entry_op("w", flagged("neg"))).tensor("w"), -at::arange(8, at::kFloat)));
  EXPECT_THAT(error_of_tensor(flagged("conj")), HasSubstr("Float cannot be conjugated"));
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n";
  EXPECT_THAT(error_of_tensor(parameter + ")R"), HasSubstr("must be made of a tensor"));
  EXPECT_THAT(error_of_tensor(parameter + "N\x85R"), HasSubstr("must be made of a tensor"));
  EXPECT_THAT(error_of_tensor(parameter + parameter + ")R\x85R"), HasSubstr("holds no tensors"));
}

TEST_F(TorchTensors, BrokenStorages) {
  const auto of = [&](const std::string& storage) { return error_of_tensor(tensor_op(storage, {0, {1}, {1}})); };
  const std::string start = "(" + text_op("storage") + "ctorch\nFloatStorage\n" + text_op("0") + text_op("cpu");
  EXPECT_EQ(of(start + "K\x08tQ"), "no error");
  EXPECT_EQ(of(start + "K\x08NtQ"), "no error");
  EXPECT_THAT(of(start + "K\x08)tQ"), HasSubstr("is a part of a storage, as torch 0.1 wrote it"));
  EXPECT_THAT(of(start + "tQ"), HasSubstr("must have 5 arguments, got 4"));
  EXPECT_THAT(of("NQ"), HasSubstr("must be described by a tuple, got None"));
  EXPECT_THAT(of("(" + text_op("module") + "NNNNtQ"), HasSubstr("must be a storage, got \"module\""));
  EXPECT_THAT(of("(NNNNNtQ"), HasSubstr("what it is must be a string, got None"));
  EXPECT_THAT(of("(" + text_op("storage") + "ctorch.storage\nTypedStorage\n" + text_op("0") + "NK\1tQ"),
              HasSubstr("its class cannot be torch.storage.TypedStorage"));
  EXPECT_THAT(of(storage_op("FloatStorage", "0", -1)), HasSubstr("elements must be a whole number from 0, got -1"));
  EXPECT_THAT(of(storage_op("FloatStorage", "0", INT64_MAX)), HasSubstr("more bytes than 64 bits can count"));
  EXPECT_EQ(of(storage_op("FloatStorage", "0", 7)), "tensor \"w\": its storage \"0\" must have 28 bytes, but has 32");
  EXPECT_THAT(of(storage_op("FloatStorage", "0", 9)), HasSubstr("must have 36 bytes, but has 32"));
  EXPECT_EQ(of(storage_op("FloatStorage", "1", 8)), "\"a/data/1\": the zip archive has no such entry");
  EXPECT_EQ(of(storage_op("IntStorage", "0", 8)), "no error");
}

TEST_F(TorchTensors, BoolsMustBeZeroOrOne) {
  const TorchFile file = open("}" + entry_op("w", tensor_op(storage_op("BoolStorage", "0", 32), {0, {32}, {1}})));
  EXPECT_THAT(error_of([&] { file.tensor("w"); }), HasSubstr("tensor \"w\": a bool must be 0 or 1, got 128 at byte "));
}

TEST_F(TorchTensors, BrokenArchives) {
  const std::string object = pickled("}" + entry_op("w", tensor_op(kEight, kPlain))), data(32, '\0');
  EXPECT_EQ(error_of_bytes(stored_zip({{"a/data.pkl", object}, {"a/data/0", data}})), "no error");
  EXPECT_THAT(error_of_bytes(stored_zip({{"b", ""}, {"a/data.pkl", object}})),
              HasSubstr("not a checkpoint of PyTorch: the zip archive has no \"b/data.pkl\""));
  EXPECT_THAT(error_of_bytes(stored_zip({{"a/data.pkl", object}, {"a/constants.pkl", ""}})),
              HasSubstr("is a TorchScript program"));
  EXPECT_THAT(error_of_bytes(stored_zip({{"a/data.pkl", object}, {"a/byteorder", "big"}})),
              HasSubstr("byteorder must be little, got \"big\""));
  EXPECT_THAT(error_of_bytes(stored_zip({{"a/data.pkl", object}}, 8)), HasSubstr("must be stored as it is"));
  EXPECT_THAT(error_of_bytes(stored_zip({{"a/data.pkl", ""}})), HasSubstr("not a pickle of protocol 2 to 5"));
  EXPECT_THAT(error_of_bytes("PK\x03\x04"), HasSubstr("the zip archive cannot be read"));
  EXPECT_THAT(error_of_bytes(""), HasSubstr("must begin as a zip archive or as a pickle"));
  EXPECT_THAT(error_of_bytes(std::string(257, 'a') + "ustar"), HasSubstr("is a tar archive"));
  EXPECT_THAT(error_of_bytes(pickled("}")), HasSubstr("the pickle at byte 0 must be its magic number"));
}

// Entries of the directory that name the same bytes again and again.
TEST_F(TorchTensors, StoragesThatOverlapAreRefused) {
  const std::string data(2000, '\0');
  std::string object = "}";
  std::vector<std::pair<std::string, std::string>> entries = {{"a/data.pkl", ""}, {"a/data/0", data}, {"a/data/1", ""}};
  for (const char* key : {"0", "1"})
    object += entry_op(key, tensor_op(storage_op("ByteStorage", key, 2000), {0, {2000}, {1}}));
  entries[0].second = pickled(object);
  std::string bytes = stored_zip(entries);
  // The second storage becomes the first one, for its size and its place in the directory.
  const size_t first = bytes.rfind("a/data/0") - 46, second = bytes.rfind("a/data/1") - 46;
  bytes.replace(second + 20, 8, bytes, first + 20, 8);
  bytes.replace(second + 42, 4, bytes, first + 42, 4);
  EXPECT_THAT(error_of_bytes(bytes), HasSubstr("its storages must not overlap, but have more bytes than the file"));
}

TEST_F(TorchTensors, BrokenLegacyFiles) {
  const std::string &magic = kLegacyMagic, &protocol = kLegacyProtocol, &start = kLegacyStart;
  const std::string object = pickled("}" + entry_op("w", tensor_op(kEight, kPlain)));
  const std::string keys = pickled("]" + text_op("0") + "a"), data = raw(int64_t{8}) + std::string(32, '\0');
  EXPECT_EQ(error_of_bytes(start + object + keys + data), "no error");
  EXPECT_THAT(error_of_bytes(magic + pickled("K\1")), HasSubstr("must be the protocol 1001"));
  EXPECT_THAT(error_of_bytes(magic + protocol + pickled("N")), HasSubstr("must say on what system it was written"));
  EXPECT_THAT(error_of_bytes(magic + protocol + legacy_system("\x89")), HasSubstr("must be little-endian"));
  EXPECT_THAT(error_of_bytes(start + object + pickled("N")), HasSubstr("must list the storages"));
  EXPECT_THAT(error_of_bytes(start + object + pickled("]Na")), HasSubstr("key must be a string, got None"));
  EXPECT_THAT(error_of_bytes(start + object + pickled("]")), HasSubstr("its storage \"0\" is not in the file"));
  EXPECT_THAT(error_of_bytes(start + object + pickled("]" + text_op("1") + "a")),
              HasSubstr("no tensor has the storage \"1\""));
  EXPECT_THAT(error_of_bytes(start + object + keys + "1234567"), HasSubstr("7 bytes are left: is the file cut off?"));
  EXPECT_THAT(error_of_bytes(start + object + keys + data.substr(0, 39)), HasSubstr("is it cut off?"));
  EXPECT_THAT(error_of_bytes(start + object + keys + raw(int64_t{-8})), HasSubstr("must have 8 elements"));
}

// Nothing here has a checksum, so that every mutation is read.
TEST_F(TorchTensors, EveryChangedByteAndEveryLengthIsRefusedOrReadWithinBounds) {
  const std::string w = tensor_op(kEight, kPlain),
                    object = pickled("}" + entry_op("w", w) +
                                     entry_op("d", "}" + entry_op("v", tensor_op(kEight, {1, {3, 2}, {1, 3}}))));
  const at::Tensor values = at::arange(8, at::kFloat);
  const std::string data(static_cast<const char*>(values.const_data_ptr()), values.nbytes());
  const std::string archive = stored_zip({{"a/data.pkl", object}, {"a/byteorder", "little"}, {"a/data/0", data}});
  const std::string legacy = kLegacyStart + object + pickled("]" + text_op("0") + "a") + raw(int64_t{8}) + data;
  int64_t refused = 0, read = 0;
  const auto attempt = [&](const std::string& contents) {
    // From a buffer without slack first, where a sanitizer sees every byte read beyond it.
    const std::vector<char> exact(contents.begin(), contents.end());
    try {
      const StoredZip zip(std::as_bytes(std::span(exact)), "x.pt");
      for (const char* name : {"a/data.pkl", "a/byteorder", "a/data/0"}) {
        if (zip.contains(name)) crc_agrees({zip.entry(name).data, 0, 1});
      }
    } catch (const Error&) {
    }
    const std::string error = error_of([&] {
      const TorchFile file = open_bytes(contents);
      for (const std::string& name : file.names()) {
        const at::Tensor tensor = file.tensor(name);
        if (tensor.numel() < 1'000'000) tensor.clone(at::MemoryFormat::Contiguous);
      }
    });
    ++(error == "no error" ? read : refused);
    return error;
  };
  for (const std::string& good : {archive, legacy}) {
    EXPECT_EQ(attempt(good), "no error");
    for (size_t length = 0; length < good.size(); ++length) {
      EXPECT_NE(attempt(good.substr(0, length)), "no error") << length;
    }
    for (size_t at = 0; at < good.size(); ++at) {
      for (int bits = 1; bits < 256; bits = bits < 16 ? bits + 1 : bits * 2 + 1) {
        std::string changed = good;
        changed[at] = static_cast<char>(changed[at] ^ bits);
        attempt(changed);
      }
    }
  }
  RecordProperty("refused", std::to_string(refused));
  RecordProperty("read", std::to_string(read));
  EXPECT_GT(refused, 5000);
  EXPECT_GT(read, 5000);
}

}  // namespace
}  // namespace adder::weights
