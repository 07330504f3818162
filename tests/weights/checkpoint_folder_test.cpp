#include "adder/weights/checkpoint_folder.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <csignal>
#include <fstream>
#include <functional>
#include <limits>

#include "adder/core/hash.h"
#include "adder/core/version.h"
#include "tests/error_of.h"
#include "tests/weights/checkpoint_fixture.h"

namespace adder::weights {
namespace {
using nlohmann::ordered_json;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

// The document with its hash made right again after a change.
void change_document(const fs::path& checkpoint, const std::function<void(ordered_json&)>& change) {
  ordered_json document = ordered_json::parse(read(checkpoint / "checkpoint.json"));
  document.erase("hash");
  change(document);
  const std::string text = document.dump(2) + "\n";
  const std::string hash = core::hash_bytes(std::as_bytes(std::span(text)));
  replace(checkpoint / "checkpoint.json", text.substr(0, text.size() - 3) + ",\n  \"hash\": \"" + hash + "\"\n}\n");
}

void list_again(const fs::path& checkpoint, const std::string& file) {
  const std::string bytes = read(checkpoint / file);
  change_document(checkpoint, [&](ordered_json& document) {
    document["files"][file] = {{"bytes", bytes.size()},
                               {"xxh3_128", core::hash_bytes(std::as_bytes(std::span(bytes)))}};
  });
}

TEST_F(Checkpoint, ComesBackAsItWasGiven) {
  const NamedTensors model = {{"z", at::randn({3, 5})},
                              {"a", at::randn({4, 2}).to(at::kBFloat16).t()},
                              {"none", at::empty({0, 3})},
                              {"step", at::scalar_tensor(3, at::kLong)}};
  const ordered_json state = {{"z", 1}, {"a", {1.0 / 3, -0.0, 1e300, nullptr, true}}, {"text", "é\n\"\\"}};
  write_checkpoint_folder(path_, {{{"model.safetensors", model}, {"a-b_1.safetensors", {}}}, state});
  const CheckpointFolder checkpoint(path_, Verify::kFilesAndTensors);
  EXPECT_EQ(checkpoint.path(), path_);
  EXPECT_EQ(checkpoint.adder_version(), core::kVersion);
  EXPECT_EQ(checkpoint.state().dump(), state.dump());
  EXPECT_TRUE(checkpoint.has("model.safetensors"));
  EXPECT_FALSE(checkpoint.has("checkpoint.json"));
  EXPECT_TRUE(checkpoint.tensors("a-b_1.safetensors").empty());
  for (const Access access : {Access::kCopy, Access::kMapped}) {
    const NamedTensors got = checkpoint.tensors("model.safetensors", access);
    ASSERT_EQ(got.size(), model.size());
    for (size_t i = 0; i < model.size(); ++i) {
      EXPECT_EQ(got[i].first, model[i].first);
      EXPECT_EQ(tensor_hash(got[i].second), tensor_hash(model[i].second)) << model[i].first;
    }
  }
  checkpoint.tensors("model.safetensors")[0].second.zero_();
  EXPECT_TRUE(at::equal(checkpoint.tensors("model.safetensors")[0].second, model[0].second));
  EXPECT_EQ(error_of([&] { checkpoint.tensors("x"); }), path_.string() + ": the checkpoint has no file \"x\"");
}

TEST_F(Checkpoint, MappedTensorsOutliveTheFolder) {
  write_checkpoint_folder(path_, small());
  const NamedTensors mapped = CheckpointFolder(path_).tensors("model.safetensors", Access::kMapped);
  fs::remove_all(path_);
  EXPECT_TRUE(at::equal(mapped[0].second, weight_));
}

TEST_F(Checkpoint, EmptyOneAndSameBytes) {
  write_checkpoint_folder(path_, {});
  EXPECT_EQ(CheckpointFolder(path_).state(), ordered_json::object());
  write_checkpoint_folder(path_, small());
  write_checkpoint_folder(folder_ / "again", small());
  for (const char* file : {"checkpoint.json", "model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(read(path_ / file), read(folder_ / "again" / file)) << file;
  }
  EXPECT_THAT(names(), ElementsAre("again", "step-00000007"));
}

TEST_F(Checkpoint, TheVersionIsThatOfTheBuild) {
  EXPECT_THAT(read(fs::path(ADDER_SOURCE_DIR) / "CMakeLists.txt"),
              HasSubstr("project(adder VERSION " + std::string(core::kVersion) + " "));
}

TEST_F(Checkpoint, EveryChangedByteAndEveryLengthIsRefused) {
  write_checkpoint_folder(path_, small());
  for (const std::string file : {"checkpoint.json", "model.safetensors", "optimizer.safetensors"}) {
    const std::string good = read(path_ / file);
    const auto attempt = [&](const std::string& contents) {
      replace(path_ / file, contents);
      return error_on_opening();
    };
    EXPECT_EQ(attempt(good), "no error");
    for (size_t length = 0; length < good.size(); ++length) {
      EXPECT_NE(attempt(good.substr(0, length)), "no error") << file << " cut to " << length;
    }
    for (size_t at = 0; at < good.size(); ++at) {
      for (const int bits : {1, 2, 4, 8, 16, 32, 64, 128, 255, good[at] ^ ' ', good[at] ^ '\t', good[at] ^ '0'}) {
        if (bits == 0) continue;
        std::string changed = good;
        changed[at] = static_cast<char>(changed[at] ^ bits);
        EXPECT_NE(attempt(changed), "no error") << file << " byte " << at << " changed by " << bits;
      }
    }
    for (const char* more : {"x", " ", "\n"}) {
      EXPECT_NE(attempt(good + more), "no error") << file;
      EXPECT_NE(attempt(more + good), "no error") << file;
    }
    replace(path_ / file, good);
  }
  EXPECT_EQ(error_on_opening(), "no error");
}

TEST_F(Checkpoint, EquallyMeantJsonIsNotWhatWasWritten) {
  write_checkpoint_folder(path_, small());
  std::string text = read(path_ / "checkpoint.json");
  text.replace(text.find("1.5e-07"), 7, "1.5E-07");
  replace(path_ / "checkpoint.json", text);
  EXPECT_THAT(error_on_opening(), StartsWith("/checkpoint.json: damaged: its hash must be"));
}

TEST_F(Checkpoint, TheErrorSaysWhichTensorIsDamaged) {
  CheckpointContent content = small();
  content.files[0].tensors = {{"c", at::ones({4})}, {"b", at::ones({4})}, {"flag", at::ones({2}, at::kBool)}};
  write_checkpoint_folder(path_, content);
  const std::string good = read(model_);
  const size_t data = good.size() - 34;  // b, c, flag
  const auto changed_at = [&](size_t at, int bits) {
    std::string changed = good;
    changed[at] = static_cast<char>(changed[at] ^ bits);
    replace(model_, changed);
    return error_on_opening();
  };
  EXPECT_THAT(changed_at(data, 1), AllOf(StartsWith("/model.safetensors: damaged: its hash must be"),
                                         EndsWith("; damaged tensors (1 of 3): \"b\"")));
  EXPECT_THAT(changed_at(data + 31, 128), EndsWith("; damaged tensors (1 of 3): \"c\""));
  EXPECT_THAT(changed_at(data + 32, 4), EndsWith("; damaged tensors (1 of 3): \"flag\""));
  EXPECT_THAT(changed_at(good.find("\"pt\"") + 1, 1), EndsWith("; every tensor is whole, so its header is not"));
  EXPECT_THAT(changed_at(good.find("\"c\"") + 1, 1), AllOf(HasSubstr("twice")));
  EXPECT_THAT(changed_at(good.find("\"c\"") + 1, 8),
              EndsWith("has the tensor \"k\", which checkpoint.json does not list"));
  EXPECT_THAT(changed_at(8, 1), EndsWith("the header must begin with '{' at byte 8"));

  replace(model_, good.substr(0, good.size() - 1));
  EXPECT_THAT(error_on_opening(), AllOf(StartsWith("/model.safetensors: must have "), EndsWith(": is it cut off?")));
  replace(model_, good + "x");
  EXPECT_THAT(error_on_opening(),
              AllOf(StartsWith("/model.safetensors: must have "), EndsWith(fmt::format("has {}", good.size() + 1))));
}

TEST_F(Checkpoint, TensorHashesAreCheckedWhereAsked) {
  write_checkpoint_folder(path_, small());
  write_safetensors(model_, {{"w", at::zeros({3})}});
  list_again(path_, "model.safetensors");
  EXPECT_EQ(error_on_opening(), "no error");
  EXPECT_EQ(error_on_opening(Verify::kFilesAndTensors),
            "/model.safetensors: the file has its hash, but damaged tensors (1 of 1): \"w\"");
}

TEST_F(Checkpoint, MissingAndExtraTensorsAndFiles) {
  write_checkpoint_folder(path_, small());
  write_safetensors(model_, {{"w", weight_}, {"extra", weight_}});
  list_again(path_, "model.safetensors");
  EXPECT_EQ(error_on_opening(), "/model.safetensors: has the tensor \"extra\", which checkpoint.json does not list");
  write_safetensors(model_, {});
  list_again(path_, "model.safetensors");
  EXPECT_EQ(error_on_opening(), "/model.safetensors: tensor \"w\" is missing; checkpoint.json lists it");
  fs::remove(model_);
  EXPECT_EQ(error_on_opening(), "/model.safetensors: is missing; checkpoint.json lists it");
  fs::create_directory(model_);
  EXPECT_NE(error_of([&] { CheckpointFolder checkpoint(path_); }), "no error");
}

TEST_F(Checkpoint, ForeignFolders) {
  EXPECT_EQ(error_on_opening(), ": there is no such folder");
  replace(path_, "x");
  EXPECT_EQ(error_on_opening(), ": must be a folder, but is a file");
  fs::remove(path_);
  fs::create_directory(path_);
  write_safetensors(model_, {{"w", weight_}});
  EXPECT_EQ(error_on_opening(), ": is no Adder checkpoint: it has no checkpoint.json");
  const auto with_document = [&](const std::string& text) {
    replace(path_ / "checkpoint.json", text);
    return error_on_opening();
  };
  const std::string foreign = "/checkpoint.json: is no Adder checkpoint: \"format\" must be \"adder-checkpoint\", got ";
  EXPECT_EQ(with_document(R"({"format":"pytorch","version":9})"), foreign + "\"pytorch\"");
  EXPECT_EQ(with_document(R"({"version":1})"), foreign + "null (\"null\")");
  EXPECT_EQ(with_document("[1]"), foreign + "null (\"null\")");
  EXPECT_THAT(with_document(""), StartsWith("/checkpoint.json: is not valid JSON before byte 0"));
  EXPECT_THAT(with_document(R"({"format":"adder-checkpoint","format":"adder-checkpoint"})"),
              HasSubstr("key \"format\" appears twice"));
  EXPECT_EQ(with_document(R"({"format":"adder-checkpoint"})"),
            "/checkpoint.json: \"version\" must be a whole number from 1, got null (\"null\")");
  EXPECT_THAT(with_document(R"({"format":"adder-checkpoint","version":0})"), HasSubstr("must be a whole number"));
  EXPECT_THAT(with_document(R"({"format":"adder-checkpoint","version":1.0})"), HasSubstr("must be a whole number"));
  EXPECT_EQ(with_document(R"({"format":"adder-checkpoint","version":1})"),
            "/checkpoint.json: damaged: its last line must be its hash");
}

TEST_F(Checkpoint, NewerVersions) {
  write_checkpoint_folder(path_, small());
  change_document(path_, [](ordered_json& document) {
    document["version"] = 2;
    document["adder_version"] = "9.1.0";
    document.erase("tensors");
  });
  EXPECT_EQ(error_on_opening(),
            "/checkpoint.json: written by a newer version of Adder (\"9.1.0\"): its format has version 2, this program "
            "reads up to 1");
}

// A right hash over a wrong form: nothing may be taken on trust.
TEST_F(Checkpoint, WrongFormsWithARightHash) {
  const auto changed = [&](const std::function<void(ordered_json&)>& change) {
    write_checkpoint_folder(path_, small());
    change_document(path_, change);
    return error_on_opening();
  };
  const std::string model = "model.safetensors";
  EXPECT_EQ(changed([](ordered_json&) {}), "no error");
  EXPECT_THAT(changed([](ordered_json& d) { d.erase("state"); }), HasSubstr("must have the keys format, version"));
  EXPECT_THAT(changed([](ordered_json& d) { d["more"] = 1; }), HasSubstr("must have the keys"));
  EXPECT_THAT(changed([](ordered_json& d) { d["state"] = 1; }), HasSubstr("\"state\" must be an object"));
  EXPECT_THAT(changed([](ordered_json& d) { d["adder_version"] = 1; }), HasSubstr("must be a string"));
  EXPECT_THAT(changed([](ordered_json& d) { d["files"] = 1; }), HasSubstr("must be objects with the same keys"));
  EXPECT_THAT(changed([](ordered_json& d) { d["tensors"] = ordered_json::array({1, 2}); }), HasSubstr("same keys"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["tensors"].erase(model); }), HasSubstr("same keys"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["tensors"][model] = 1; }), HasSubstr("must have its tensors listed"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["tensors"][model]["w"] = 1; }), HasSubstr("a hash of 32 digits"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["files"][model] = 1; }), HasSubstr("must have the fields bytes"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["files"][model]["bytes"] = -1; }), HasSubstr("a size in bytes"));
  EXPECT_THAT(changed([&](ordered_json& d) { d["files"][model]["xxh3_128"] = "1"; }), HasSubstr("a hash of 32"));
  for (const char* name :
       {"../x.safetensors", "/x.safetensors", ".x.safetensors", ".safetensors", "x.json", "x\\.safetensors"}) {
    EXPECT_THAT(changed([&](ordered_json& d) {
                  d["files"][name] = d["files"][model];
                  d["tensors"][name] = d["tensors"][model];
                }),
                HasSubstr("must have a plain name that ends in .safetensors"))
        << name;
  }
}

TEST_F(Checkpoint, WhatCannotBeWritten) {
  write_checkpoint_folder(path_, small());
  const auto error = [&](const std::function<void(CheckpointContent&)>& change) {
    CheckpointContent content = small();
    change(content);
    const std::string text = error_of([&] { write_checkpoint_folder(path_, content); });
    EXPECT_THAT(text, StartsWith(path_.string() + ": the checkpoint was not written: "));
    EXPECT_EQ(error_on_opening(), "no error");
    EXPECT_THAT(names(), ElementsAre("step-00000007"));
    return text;
  };
  using Content = CheckpointContent;
  EXPECT_THAT(error([](Content& c) { c.files[0].name = "../model.safetensors"; }), HasSubstr("plain name"));
  EXPECT_THAT(error([](Content& c) { c.files[0].name = "checkpoint.json"; }), HasSubstr("plain name"));
  EXPECT_THAT(error([](Content& c) { c.files[1].name = c.files[0].name; }),
              EndsWith("file \"model.safetensors\" is given twice"));
  EXPECT_THAT(error([](Content& c) { c.files[0].tensors.push_back(c.files[0].tensors[0]); }),
              EndsWith("tensor \"w\" is given twice"));
  EXPECT_THAT(error([](Content& c) { c.files[1].tensors[0].second = at::Tensor(); }), EndsWith("is undefined"));
  EXPECT_THAT(error([](Content& c) { c.state = 3; }), EndsWith("the state must be a JSON object, got number"));
  EXPECT_THAT(error([](Content& c) { c.state["a"]["loss"] = {1.0, std::nan("")}; }),
              EndsWith("state.a.loss.1 must be finite, as JSON has no other numbers; got nan"));
  EXPECT_THAT(error([](Content& c) { c.state["best"] = std::numeric_limits<double>::infinity(); }),
              HasSubstr("state.best must be finite"));
  EXPECT_THAT(error([](Content& c) { c.state["a"] = "\xff"; }), EndsWith("must be UTF-8"));
  EXPECT_THAT(error([](Content& c) { c.state["a"] = ordered_json::binary({1}); }),
              EndsWith("state.a must be a JSON value"));
  const auto nested = [](int depth) {
    ordered_json value = 1;
    for (int i = 0; i < depth; ++i) value = {{"a", value}};
    return value;
  };
  EXPECT_THAT(error([&](Content& c) { c.state["a"] = nested(63); }), HasSubstr("nested more than 63 deep"));
  CheckpointContent deepest = small();
  deepest.state["a"] = nested(61);
  write_checkpoint_folder(path_, deepest);
  EXPECT_EQ(CheckpointFolder(path_).state(), deepest.state);
}

// A limit on the size of files makes write() stop half-way, as a full disk does.
TEST_F(Checkpoint, AFullDiskLeavesTheOldCheckpoint) {
  write_checkpoint_folder(path_, small());
  CheckpointContent large = small();
  large.files[1].tensors = {{"large", at::ones({10000})}};
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{10000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const std::string replaced = error_of([&] { write_checkpoint_folder(path_, large); });
  const std::string created = error_of([&] { write_checkpoint_folder(folder_ / "new", large); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_THAT(replaced, AllOf(StartsWith(path_.string() + ": the checkpoint was not written: cannot write"),
                              HasSubstr("optimizer.safetensors' at byte 10000: File too large")));
  EXPECT_THAT(created, HasSubstr("File too large"));
  EXPECT_THAT(names(), ElementsAre("step-00000007"));
  EXPECT_EQ(error_on_opening(), "no error");
}

}  // namespace
}  // namespace adder::weights
