#include "adder/weights/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>
#include <limits>
#include <string>

#include "adder/core/check.h"
#include "adder/weights/torch_tensors.h"
#include "tests/error_of.h"
#include "tests/weights/torch_fixture.h"

namespace adder::weights {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Kind = PickleValue::Kind;
using namespace std::string_literals;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

// `text` must outlive what it gives.
Pickle read(const std::string& text, int64_t start = 0) {
  return Pickle(bytes_of(text), torch_globals(), "x.pt", start);
}

// The error, without "x.pt: pickle, at byte ".
std::string error_of(const std::string& text) {
  return error_behind("x.pt: pickle, at byte ", [&] { read(text); });
}

// The same of a body, which begins at byte 2.
std::string error_in(const std::string& body) {
  return error_of(pickled(body));
}

// A value in a few words: "{'a': [1, -2.5]}".
std::string shown(const PickleValue& value) {
  const auto joined = [&](const char* open, const char* close) {
    std::string out = open;
    for (size_t i = 0; i < value.items.size(); ++i) {
      const bool after_key = value.kind == Kind::kDict && i % 2 == 1;
      out += (i == 0 ? "" : after_key ? ": " : ", ") + shown(*value.items[i]);
    }
    return out + close;
  };
  switch (value.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return value.integer ? "True" : "False";
    case Kind::kInt:
      return std::to_string(value.integer);
    case Kind::kBigInt:
      return fmt::format("big{}", value.text.size());
    case Kind::kFloat:
      return fmt::format("{}", value.real);
    case Kind::kText:
      return fmt::format("'{}'", value.text);
    case Kind::kBytes:
      return fmt::format("b'{}'", value.text);
    case Kind::kTuple:
      return joined("(", ")");
    case Kind::kList:
      return joined("[", "]");
    case Kind::kDict:
      return joined("{", "}");
    case Kind::kGlobal:
      return std::string(value.text);
    case Kind::kCall:
      return joined("call(", ")");
    case Kind::kPersistent:
      return joined("persistent(", ")");
  }
  return "?";
}

std::string value_of(const std::string& body) {
  const std::string text = pickled(body);
  return shown(read(text).root());
}

TEST(Pickle, NumbersAndStrings) {
  EXPECT_EQ(value_of("N"), "None");
  EXPECT_EQ(value_of("\x88"), "True");
  EXPECT_EQ(value_of("\x89"), "False");
  EXPECT_EQ(value_of("K\xff"), "255");
  EXPECT_EQ(value_of("M\xff\xff"), "65535");
  EXPECT_EQ(value_of("J\xfe\xff\xff\xff"), "-2");
  EXPECT_EQ(value_of("\x8a\0"s), "0");
  EXPECT_EQ(value_of("\x8a\1\xff"), "-1");
  EXPECT_EQ(value_of("\x8a\2\xff\0"s), "255");
  EXPECT_EQ(value_of("\x8a\x08" + raw(std::numeric_limits<int64_t>::min())), "-9223372036854775808");
  EXPECT_EQ(value_of("\x8b\3\0\0\0\1\2\3"s), "197121");
  EXPECT_EQ(value_of("\x8a\x09" + std::string(9, '\1')), "big9");
  EXPECT_EQ(value_of("G\xc0\4\0\0\0\0\0\0"s), "-2.5");
  EXPECT_EQ(value_of(text_op("é")), "'é'");
  EXPECT_EQ(value_of("U\1a"), "'a'");
  EXPECT_EQ(value_of("T\1\0\0\0a"s), "'a'");
  EXPECT_EQ(value_of("\x8c\1a"), "'a'");
  EXPECT_EQ(value_of("\x8d\1\0\0\0\0\0\0\0a"s), "'a'");
  EXPECT_EQ(value_of("C\1a"), "b'a'");
  EXPECT_EQ(value_of("B\1\0\0\0a"s), "b'a'");
  EXPECT_EQ(value_of("\x8e\1\0\0\0\0\0\0\0a"s), "b'a'");
}

TEST(Pickle, Containers) {
  EXPECT_EQ(value_of(")"), "()");
  EXPECT_EQ(value_of("K\1\x85"), "(1)");
  EXPECT_EQ(value_of("K\1K\2\x86"), "(1, 2)");
  EXPECT_EQ(value_of("K\1K\2K\3\x87"), "(1, 2, 3)");
  EXPECT_EQ(value_of("(K\1K\2K\3K\4t"), "(1, 2, 3, 4)");
  EXPECT_EQ(value_of("]K\1a(K\2K\3e"), "[1, 2, 3]");
  EXPECT_EQ(value_of("(K\1K\2l"), "[1, 2]");
  EXPECT_EQ(value_of("}K\1K\2s(K\3K\4K\5K\6u"), "{1: 2, 3: 4, 5: 6}");
  EXPECT_EQ(value_of("(K\1K\2d"), "{1: 2}");
  EXPECT_EQ(value_of("(((t"), "()");
  EXPECT_EQ(value_of("K\7(K\1(K\2t1"), "7");
  EXPECT_EQ(value_of("K\1K\2(00"), "1");
  EXPECT_EQ(value_of("K\0012\x86"s), "(1, 1)");
}

TEST(Pickle, Memo) {
  EXPECT_EQ(value_of("K\1q\5h\5\x86"), "(1, 1)");
  EXPECT_EQ(value_of("K\1r" + raw(0xffffffffu) + "j" + raw(0xffffffffu) + "\x86"), "(1, 1)");
  EXPECT_EQ(value_of("K\1q\1K\2q\1h\1\x87"), "(1, 2, 2)");
  EXPECT_EQ(value_of("K\7\x94K\x08\x94h\0h\1\x86\x87"s), "(7, 8, (7, 8))");
  EXPECT_THAT(error_in("h\0"s), "2: value 0 is asked for, which was not put aside before");
  EXPECT_THAT(error_in("K\1q\1j\2\0\0\0"s), HasSubstr("6: value 2 is asked for"));
  EXPECT_THAT(error_in("q\0"s), "2: the stack has no value");
  EXPECT_THAT(error_in("K\1(\x94"s), "5: the stack has no value");
}

TEST(Pickle, GlobalsAreNamesAndNothingIsCalled) {
  EXPECT_EQ(value_of("ctorch\nFloatStorage\n"), "torch.FloatStorage");
  EXPECT_EQ(value_of(text_op("torch") + text_op("bfloat16") + "\x93"), "torch.bfloat16");
  EXPECT_EQ(value_of("ctorch\nSize\nK\1K\2\x86\x85R"), "call(torch.Size, ((1, 2)))");
  EXPECT_EQ(value_of("cargparse\nNamespace\n)\x81}K\1K\2sb"), "call(argparse.Namespace, ())");
  EXPECT_EQ(value_of("ccollections\nOrderedDict\n)R(K\1K\2u}K\3K\4sb"), "{1: 2}");
  EXPECT_EQ(value_of("ccollections\nOrderedDict\n](]K\1a"
                     "K\2a"
                     "K\3K\4\x86"
                     "e\x85R"),
            "{1: 2, 3: 4}");
  const std::string text = pickled("K\1QK\2Q\x86");
  const Pickle pickle = read(text);
  EXPECT_EQ(shown(pickle.root()), "(persistent(1), persistent(2))");
  EXPECT_THAT(pickle.persistent(), ElementsAre(pickle.root().items[0], pickle.root().items[1]));
}

TEST(Pickle, OtherGlobalsAreRefusedByName) {
  EXPECT_EQ(error_in("cos\nsystem\n" + text_op("touch /tmp/x") + "\x85R"),
            "2: asks for os.system; only tensors and plain containers are read");
  EXPECT_THAT(error_in(text_op("builtins") + text_op("eval") + "\x93"), HasSubstr("asks for builtins.eval;"));
  EXPECT_THAT(error_in("ctorch\nNoStorage\n"), HasSubstr("asks for torch.NoStorage;"));
  EXPECT_THAT(error_in("ctorch.FloatStorage\n\n"), HasSubstr("asks for torch.FloatStorage.;"));
  EXPECT_THAT(error_in("c\n\n"), HasSubstr("asks for .;"));
  EXPECT_THAT(error_in("c\x1b[\xff\nb\n"), HasSubstr("asks for ?[?.b;"));
  EXPECT_LT(error_in("c" + std::string(100000, 'a') + "\nb\n").size(), 300u);
  EXPECT_THAT(error_in("cos"), "2: a name without an end: is the file cut off?");
  EXPECT_THAT(error_in("cos\nsystem"), "2: a name without an end: is the file cut off?");
  EXPECT_THAT(error_in("K\1K\2\x93"), HasSubstr("a global's name must be a string, got an integer"));
}

TEST(Pickle, RefusedOpcodes) {
  const std::pair<const char*, const char*> rows[] = {
      {"I1\n", "INT"},       {"L1\n", "LONG"},       {"F1\n", "FLOAT"},       {"S'a'\n", "STRING"},
      {"Va\n", "UNICODE"},   {"p0\n", "PUT"},        {"g0\n", "GET"},         {"(ios\nsystem\n", "INST"},
      {"(o", "OBJ"},         {"Pa\n", "PERSID"},     {"\x82\1", "EXT1"},      {"\x83\1\1", "EXT2"},
      {"\x84", "EXT4"},      {"\x8f", "EMPTY_SET"},  {"(\x90", "ADDITEMS"},   {"(\x91", "FROZENSET"},
      {"\x92", "NEWOBJ_EX"}, {"\x96", "BYTEARRAY8"}, {"\x97", "NEXT_BUFFER"}, {"\x98", "READONLY_BUFFER"}};
  for (const auto& [body, name] : rows) {
    EXPECT_THAT(error_in(body), HasSubstr(fmt::format(": opcode {} is not read: files of tensors have none", name)));
  }
  EXPECT_EQ(error_in("\xff"), "2: 0xff is no opcode");
  EXPECT_EQ(error_in("\0"s), "2: 0x00 is no opcode");
}

TEST(Pickle, Frames) {
  EXPECT_EQ(error_of(""), "0: not a pickle of protocol 2 to 5: must begin with 0x80");
  EXPECT_EQ(error_of("(dp0\n."), "0: not a pickle of protocol 2 to 5: must begin with 0x80");
  EXPECT_EQ(error_of("\x80"), "0: 1 bytes are wanted, but 0 are left: is the file cut off?");
  EXPECT_EQ(error_of("\x80\1N."), "0: protocol 1 is not read, only 2 to 5");
  EXPECT_EQ(error_of("\x80\6N."), "0: protocol 6 is not read, only 2 to 5");
  EXPECT_EQ(error_of("\x80\2N"), "3: 1 bytes are wanted, but 0 are left: is the file cut off?");
  EXPECT_EQ(error_of("\x80\2."), "2: the stack has no value");
  EXPECT_EQ(error_of("\x80\2N(."), "4: the stack has no value");
  EXPECT_EQ(error_of("\x80\4\x95\2\0\0\0\0\0\0\0N."s), "no error");
  EXPECT_EQ(error_of("\x80\4\x95\3\0\0\0\0\0\0\0N."s), "2: a frame of 3 bytes, but 2 are left: is the file cut off?");
  const std::string text = pickled("N") + pickled("K\1");
  EXPECT_EQ(read(text).size(), 4);
  const std::string second = text.substr(4);
  EXPECT_EQ(read(second, 4).root().position, 6);
  EXPECT_THAT([&] { read("\x80\2(a", 1000); },
              testing::ThrowsMessage<Error>(HasSubstr("x.pt: pickle, at byte 1003: ")));
}

TEST(Pickle, LengthsBeyondTheEnd) {
  const std::string many = "\xff\xff\xff\xff", most = many + many;
  for (const char* opcode : {"X", "B"})
    EXPECT_THAT(error_in(opcode + many), HasSubstr("2: 4294967295 bytes are wanted"));
  for (const char* opcode : {"\x8d", "\x8e"}) {
    EXPECT_THAT(error_in(opcode + most), HasSubstr("2: 18446744073709551615 bytes are wanted, but 1 are left"));
  }
  EXPECT_THAT(error_in("\x95" + most), HasSubstr("a frame of 18446744073709551615 bytes"));
  for (const char* opcode : {"T", "\x8b"}) {
    EXPECT_THAT(error_in(opcode + many), HasSubstr("2: a length must not be negative, got -1"));
    EXPECT_THAT(error_in(opcode + raw(1000)), HasSubstr("2: 1000 bytes are wanted"));
  }
  for (const char* opcode : {"U", "\x8c", "C", "\x8a"}) {
    EXPECT_THAT(error_in(opcode + "\x09 1234567"s), HasSubstr("is the file cut off?")) << opcode;
  }
  for (const char* opcode : {"J", "K", "M", "G", "h", "j", "q", "r", "X", "\x8b", "\x95"}) {
    EXPECT_THAT(error_of("\x80\2N"s + opcode), HasSubstr("is the file cut off?")) << opcode;
  }
}

TEST(Pickle, BrokenStacks) {
  EXPECT_EQ(error_in("0"), "2: the stack has no value");
  EXPECT_EQ(error_in("1"), "2: the stack has no mark");
  EXPECT_EQ(error_in("2"), "2: the stack has no value");
  EXPECT_EQ(error_in("t"), "2: the stack has no mark");
  EXPECT_EQ(error_in("N\x86"), "3: the stack must have 2 values, has 1");
  EXPECT_EQ(error_in("N(N\x86"), "5: the stack must have 2 values, has 1");
  EXPECT_EQ(error_in("]("), "4: the stack has no value");
  EXPECT_EQ(error_in("(K\1a"), "5: the stack has no value");
  EXPECT_EQ(error_in("N(K\1e"), "6: what is extended must be a list, got None");
  EXPECT_EQ(error_in("](K\1K\2u"), "8: what is extended must be a dict, got a list");
  EXPECT_EQ(error_in("}(K\1u"), "6: a dict's keys and values must come in pairs, got 1 in all");
  EXPECT_EQ(error_in("(K\1d"), "5: a dict's keys and values must come in pairs, got 1 in all");
  EXPECT_EQ(error_in("N)R"), "4: what is called must be a class or function, got None");
  EXPECT_EQ(error_in("ctorch\nSize\nNR"), "15: arguments must be a tuple, got None");
  EXPECT_EQ(error_in("NNb"), "4: None can be given no attributes");
  EXPECT_EQ(error_in("ctorch\nSize\n)RNb"), "17: an object can be given no attributes");
  const std::string ordered = "ccollections\nOrderedDict\n";
  EXPECT_THAT(error_in(ordered + "N\x85R"), HasSubstr("collections.OrderedDict must be given nothing or one list"));
  EXPECT_THAT(error_in(ordered + "]]\x86R"), HasSubstr("must be given nothing or one list"));
  EXPECT_THAT(error_in(ordered + "]Na\x85R"), HasSubstr("items must be lists of 2, got None of 0"));
  EXPECT_THAT(error_in(ordered + "](]eNa\x85R"), HasSubstr("items must be lists of 2, got a list of 0"));
}

TEST(Pickle, AValueWithinItself) {
  const std::string text = pickled("]q\0h\0a}q\1K\1h\1sa"s);
  const Pickle pickle = read(text);
  const PickleValue& list = pickle.root();
  ASSERT_EQ(list.items.size(), 2u);
  EXPECT_EQ(list.items[0], &list);
  EXPECT_EQ(list.items[1]->items[1], list.items[1]);
}

TEST(Pickle, MillionsOfLevelsAreRead) {
  constexpr size_t kDepth = 3'000'000;
  const std::string lists = pickled(std::string(kDepth, ']') + std::string(kDepth - 1, 'a'));
  const Pickle pickle = read(lists);
  size_t depth = 1;
  for (const PickleValue* list = &pickle.root(); !list->items.empty(); list = list->items[0]) ++depth;
  EXPECT_EQ(depth, kDepth);
  const std::string tuples = pickled("N" + std::string(kDepth, '\x85'));
  EXPECT_EQ(read(tuples).root().items.size(), 1u);
  EXPECT_THAT(error_in(std::string(kDepth, '(')), HasSubstr("the stack has no value"));
}

TEST(Pickle, EveryChangedByteAndEveryLengthIsRefusedOrRead) {
  const View view = {0, {2, 4}, {4, 1}};
  const std::string numbers = text_op("list") + "(K\1M\1\1lG\xc0\4\0\0\0\0\0\0\x94h\1\x8c\3abcNu"s;
  const std::string good =
      pickled("ccollections\nOrderedDict\n)Rq\5(" + text_op("w") + tensor_op(storage_op("FloatStorage", "0", 8), view) +
              numbers + "}" + text_op("_metadata") + "h\5sb");
  int64_t read_ones = 0, refused = 0;
  const auto attempt = [&](const std::string& contents) {
    // Without slack, so that a sanitizer sees every byte read beyond it.
    const std::vector<char> exact(contents.begin(), contents.end());
    try {
      Pickle(std::as_bytes(std::span(exact)), torch_globals(), "x.pt");
      ++read_ones;
      return true;
    } catch (const Error&) {
      ++refused;
      return false;
    }
  };
  EXPECT_TRUE(attempt(good));
  EXPECT_TRUE(attempt(good + "x"));
  for (size_t length = 0; length < good.size(); ++length) EXPECT_FALSE(attempt(good.substr(0, length))) << length;
  for (size_t at = 0; at < good.size(); ++at) {
    for (int bits = 1; bits < 256; ++bits) {
      std::string changed = good;
      changed[at] = static_cast<char>(changed[at] ^ bits);
      attempt(changed);
    }
  }
  EXPECT_GT(read_ones, 1000);
  EXPECT_GT(refused, 10000);
}

// The header's promises of memory and time, for the opcodes that ask for most.
int64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == "VmHWM:" && status >> kib) return kib * 1024;
  }
  return 0;
}

TEST(Pickle, MemoryAndTimeAreBoundedByTheSize) {
#ifdef __SANITIZE_ADDRESS__
  constexpr size_t kLimit = 2000;  // it keeps what is freed, and surrounds what is not
#else
  constexpr size_t kLimit = 200;
#endif
  constexpr size_t kBytes = 3'000'000;
  std::string memo_ids;
  for (uint32_t i = 0; memo_ids.size() < kBytes; ++i) memo_ids += "r" + raw(i * 62233u);
  std::string copies = "](K\1K\2\x86" + std::string(1000, '2') + "eq\1";
  while (copies.size() < kBytes) copies += "0ccollections\nOrderedDict\nh\1\x85Rh\1";
  const std::string bodies[] = {"N" + std::string(kBytes, '\x85'), std::string(kBytes, ')'),
                                "N" + std::string(kBytes, '2'),    "N" + std::string(kBytes, '\x94'),
                                std::string(kBytes, '('),          "N" + memo_ids,
                                "]N" + std::string(kBytes, '2'),   copies};
  for (const std::string& body : bodies) {
    ::malloc_trim(0);
    std::ofstream("/proc/self/clear_refs") << 5;  // the peak begins anew
    const int64_t before = peak_bytes();
    error_in(body);
    EXPECT_LE(peak_bytes() - before, static_cast<int64_t>(kLimit * body.size())) << body.substr(0, 20);
  }
  EXPECT_THAT(error_in(copies), HasSubstr("is given more items than the file can hold"));
}

}  // namespace
}  // namespace adder::weights
