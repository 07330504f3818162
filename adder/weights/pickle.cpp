#include "adder/weights/pickle.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <map>

#include "adder/core/check.h"

namespace adder::weights {
namespace {

using Kind = PickleValue::Kind;
using Values = std::vector<const PickleValue*>;

static_assert(std::endian::native == std::endian::little, "pickles are little-endian");
static_assert(sizeof(PickleValue) <= 64, "the bound on memory in pickle.h counts on it");

constexpr std::string_view kOrderedDict = "collections.OrderedDict";
constexpr std::string_view kNamespace = "argparse.Namespace";

struct OpcodeName {
  uint8_t opcode;
  const char* name;
};

// What the format has and this machine refuses: opcodes of protocols 0 and 1, extensions, sets and buffers.
constexpr std::array kRefused = {
    OpcodeName{'F', "FLOAT"},        OpcodeName{'I', "INT"},
    OpcodeName{'L', "LONG"},         OpcodeName{'P', "PERSID"},
    OpcodeName{'S', "STRING"},       OpcodeName{'V', "UNICODE"},
    OpcodeName{'g', "GET"},          OpcodeName{'i', "INST"},
    OpcodeName{'o', "OBJ"},          OpcodeName{'p', "PUT"},
    OpcodeName{0x82, "EXT1"},        OpcodeName{0x83, "EXT2"},
    OpcodeName{0x84, "EXT4"},        OpcodeName{0x8f, "EMPTY_SET"},
    OpcodeName{0x90, "ADDITEMS"},    OpcodeName{0x91, "FROZENSET"},
    OpcodeName{0x92, "NEWOBJ_EX"},   OpcodeName{0x96, "BYTEARRAY8"},
    OpcodeName{0x97, "NEXT_BUFFER"}, OpcodeName{0x98, "READONLY_BUFFER"},
};

// A global's name as it may stand in an error message.
std::string plain_name(std::string name) {
  constexpr size_t kShown = 120;
  if (name.size() > kShown) name = name.substr(0, kShown) + "...";
  for (char& c : name) {
    if (c < ' ' || c > '~') c = '?';
  }
  return name;
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, std::span<const std::string_view> globals, const std::string& path,
          int64_t start, std::deque<PickleValue>& values, Values& persistent)
      : bytes_(bytes), globals_(globals), path_(path), start_(start), values_(values), persistent_(persistent) {}

  const PickleValue* run() {
    if (bytes_.empty() || bytes_[0] != std::byte{0x80}) bad("not a pickle of protocol 2 to 5: must begin with 0x80");
    for (;;) {
      opcode_at_ = at_;
      const uint8_t opcode = number<uint8_t>();
      if (opcode == '.') return pop();
      step(opcode);
    }
  }

  int64_t reached() const { return static_cast<int64_t>(at_); }

 private:
  void step(uint8_t opcode) {
    switch (opcode) {
      case 0x80:  // PROTO
        return check_protocol(number<uint8_t>());
      case 0x95: {  // FRAME
        const uint64_t length = number<uint64_t>();
        if (length > left()) bad("a frame of {} bytes, but {} are left: is the file cut off?", length, left());
        return;
      }
      case '(':  // MARK
        return marks_.push_back(stack_.size());
      case '0':  // POP
        if (!marks_.empty() && marks_.back() == stack_.size()) return marks_.pop_back();
        pop();
        return;
      case '1':  // POP_MARK
        pop_marked();
        return;
      case '2': {  // DUP
        PickleValue* value = pop();
        stack_.insert(stack_.end(), 2, value);
        return;
      }
      case 'q':  // BINPUT
        return put(number<uint8_t>());
      case 'r':  // LONG_BINPUT
        return put(number<uint32_t>());
      case 0x94:  // MEMOIZE
        return put(static_cast<uint32_t>(memo_.size()));
      case 'h':  // BINGET
        return get(number<uint8_t>());
      case 'j':  // LONG_BINGET
        return get(number<uint32_t>());
      case 'N':  // NONE
        return push(Kind::kNone);
      case 0x88:  // NEWTRUE
      case 0x89:  // NEWFALSE
        return push_integer(Kind::kBool, opcode == 0x88);
      case 'J':  // BININT
        return push_integer(Kind::kInt, number<int32_t>());
      case 'K':  // BININT1
        return push_integer(Kind::kInt, number<uint8_t>());
      case 'M':  // BININT2
        return push_integer(Kind::kInt, number<uint16_t>());
      case 0x8a:  // LONG1
        return push_long(text(number<uint8_t>()));
      case 0x8b:  // LONG4
        return push_long(text(length_of_32_bits()));
      case 'G': {  // BINFLOAT, big-endian
        const uint64_t bits = __builtin_bswap64(number<uint64_t>());
        push(Kind::kFloat);
        values_.back().real = std::bit_cast<double>(bits);
        return;
      }
      case 'U':   // SHORT_BINSTRING
      case 0x8c:  // SHORT_BINUNICODE
        return push_text(Kind::kText, text(number<uint8_t>()));
      case 'T':  // BINSTRING
        return push_text(Kind::kText, text(length_of_32_bits()));
      case 'X':  // BINUNICODE
        return push_text(Kind::kText, text(number<uint32_t>()));
      case 0x8d:  // BINUNICODE8
        return push_text(Kind::kText, text(number<uint64_t>()));
      case 'C':  // SHORT_BINBYTES
        return push_text(Kind::kBytes, text(number<uint8_t>()));
      case 'B':  // BINBYTES
        return push_text(Kind::kBytes, text(number<uint32_t>()));
      case 0x8e:  // BINBYTES8
        return push_text(Kind::kBytes, text(number<uint64_t>()));
      case ')':  // EMPTY_TUPLE
        return push(Kind::kTuple);
      case 0x85:  // TUPLE1
      case 0x86:  // TUPLE2
      case 0x87:  // TUPLE3
        return push(Kind::kTuple, pop_some(opcode - 0x84));
      case 't':  // TUPLE
        return push(Kind::kTuple, pop_marked());
      case ']':  // EMPTY_LIST
        return push(Kind::kList);
      case 'l':  // LIST
        return push(Kind::kList, pop_marked());
      case '}':  // EMPTY_DICT
        return push(Kind::kDict);
      case 'd':  // DICT
        return push(Kind::kDict, pairs(pop_marked()));
      case 'a':  // APPEND
        return extend_top(Kind::kList, pop_some(1));
      case 'e':  // APPENDS
        return extend_top(Kind::kList, pop_marked());
      case 's':  // SETITEM
        return extend_top(Kind::kDict, pairs(pop_some(2)));
      case 'u':  // SETITEMS
        return extend_top(Kind::kDict, pairs(pop_marked()));
      case 'c': {  // GLOBAL
        const std::string_view module = line();
        return push_global(module, line());
      }
      case 0x93: {  // STACK_GLOBAL
        const Values names = pop_some(2);
        for (const PickleValue* name : names) expect(*name, Kind::kText, "a global's name");
        return push_global(names[0]->text, names[1]->text);
      }
      case 'Q':  // BINPERSID
        push(Kind::kPersistent, pop_some(1));
        return persistent_.push_back(&values_.back());
      case 'R':   // REDUCE
      case 0x81:  // NEWOBJ
        return call();
      case 'b':  // BUILD
        return build();
      default:
        break;
    }
    const auto refused = std::ranges::find(kRefused, opcode, &OpcodeName::opcode);
    if (refused != kRefused.end()) bad("opcode {} is not read: files of tensors have none", refused->name);
    bad("0x{:02x} is no opcode", opcode);
  }

  template <typename... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail("{}: pickle, at byte {}: {}", path_, start_ + static_cast<int64_t>(opcode_at_),
         fmt::format(format, std::forward<Args>(args)...));
  }

  void expect(const PickleValue& value, Kind kind, const char* what) const {
    if (value.kind != kind) bad("{} must be {}, got {}", what, kind_name(kind), kind_name(value.kind));
  }

  // Reading.

  size_t left() const { return bytes_.size() - at_; }

  std::string_view text(uint64_t length) {
    if (length > left()) bad("{} bytes are wanted, but {} are left: is the file cut off?", length, left());
    const std::string_view found(reinterpret_cast<const char*>(bytes_.data()) + at_, length);
    at_ += length;
    return found;
  }

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, text(sizeof(T)).data(), sizeof(T));
    return value;
  }

  uint64_t length_of_32_bits() {
    const int32_t length = number<int32_t>();
    if (length < 0) bad("a length must not be negative, got {}", length);
    return static_cast<uint64_t>(length);
  }

  std::string_view line() {
    const auto rest = bytes_.subspan(at_);
    const auto end = std::ranges::find(rest, std::byte{'\n'});
    if (end == rest.end()) bad("a name without an end: is the file cut off?");
    const std::string_view found = text(static_cast<uint64_t>(end - rest.begin()));
    ++at_;
    return found;
  }

  void check_protocol(int protocol) const {
    if (protocol < 2 || protocol > 5) bad("protocol {} is not read, only 2 to 5", protocol);
  }

  // The stack. What lies below the last mark is out of reach, as in Python.

  size_t reachable() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }

  PickleValue* pop() {
    if (reachable() == 0) bad("the stack has no value");
    PickleValue* value = stack_.back();
    stack_.pop_back();
    return value;
  }

  Values pop_some(size_t count) {
    if (reachable() < count) bad("the stack must have {} values, has {}", count, reachable());
    const Values values(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return values;
  }

  Values pop_marked() {
    if (marks_.empty()) bad("the stack has no mark");
    Values values = pop_some(reachable());
    marks_.pop_back();
    return values;
  }

  Values pairs(Values values) const {
    if (values.size() % 2 != 0) bad("a dict's keys and values must come in pairs, got {} in all", values.size());
    return values;
  }

  void push(Kind kind, Values items = {}) {
    values_.push_back({kind, start_ + static_cast<int64_t>(opcode_at_), {0}, {}, std::move(items)});
    stack_.push_back(&values_.back());
  }

  void push_integer(Kind kind, int64_t value) {
    push(kind);
    values_.back().integer = value;
  }

  void push_text(Kind kind, std::string_view found) {
    push(kind);
    values_.back().text = found;
  }

  void push_long(std::string_view bytes) {
    if (bytes.size() > sizeof(int64_t)) return push_text(Kind::kBigInt, bytes);
    int64_t value = !bytes.empty() && bytes.back() < 0 ? -1 : 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    push_integer(Kind::kInt, value);
  }

  void push_global(std::string_view module, std::string_view name) {
    // Together they can be far longer than the bytes that ask for them.
    constexpr size_t kLongest = 200;
    std::string asked(module.substr(0, kLongest));
    asked.append(".").append(name.substr(0, kLongest));
    const auto known = std::ranges::find(globals_, asked);
    if (known == globals_.end()) {
      bad("asks for {}; only tensors and plain containers are read", plain_name(std::move(asked)));
    }
    push_text(Kind::kGlobal, *known);
  }

  void put(uint32_t id) {
    if (reachable() == 0) bad("the stack has no value");
    memo_[id] = stack_.back();
  }

  void get(uint32_t id) {
    const auto found = memo_.find(id);
    if (found == memo_.end()) bad("value {} is asked for, which was not put aside before", id);
    stack_.push_back(found->second);
  }

  void extend_top(Kind kind, const Values& items) {
    if (reachable() == 0) bad("the stack has no value");
    PickleValue& value = *stack_.back();
    expect(value, kind, "what is extended");
    value.items.insert(value.items.end(), items.begin(), items.end());
  }

  void call() {
    Values parts = pop_some(2);
    expect(*parts[0], Kind::kGlobal, "what is called");
    expect(*parts[1], Kind::kTuple, "arguments");
    if (parts[0]->text == kOrderedDict) return push(Kind::kDict, ordered_items(*parts[1]));
    push(Kind::kCall, std::move(parts));
  }

  // Python 2 gives the items at once, as a list of lists of two.
  Values ordered_items(const PickleValue& arguments) {
    Values items;
    if (arguments.items.empty()) return items;
    if (arguments.items.size() != 1 || arguments.items[0]->kind != Kind::kList) {
      bad("{} must be given nothing or one list", kOrderedDict);
    }
    for (const PickleValue* pair : arguments.items[0]->items) {
      const bool is_pair = (pair->kind == Kind::kList || pair->kind == Kind::kTuple) && pair->items.size() == 2;
      if (!is_pair) {
        bad("{}: items must be lists of 2, got {} of {}", kOrderedDict, kind_name(pair->kind), pair->items.size());
      }
      // The same list given again and again could fill the memory.
      if (++given_items_ > bytes_.size()) bad("{} is given more items than the file can hold", kOrderedDict);
      items.insert(items.end(), pair->items.begin(), pair->items.end());
    }
    return items;
  }

  // Sets attributes: an OrderedDict's `_metadata`, for instance. None of them is kept.
  void build() {
    pop();
    PickleValue* value = pop();
    const bool has_attributes =
        value->kind == Kind::kDict || (value->kind == Kind::kCall && value->items[0]->text == kNamespace);
    if (!has_attributes) bad("{} can be given no attributes", kind_name(value->kind));
    stack_.push_back(value);
  }

  std::span<const std::byte> bytes_;
  std::span<const std::string_view> globals_;
  const std::string& path_;
  int64_t start_;
  std::deque<PickleValue>& values_;
  Values& persistent_;
  size_t at_ = 0, opcode_at_ = 0;
  std::vector<PickleValue*> stack_;
  std::vector<size_t> marks_;
  std::map<uint32_t, PickleValue*> memo_;  // not a hash table, whose buckets a file could choose
  size_t given_items_ = 0;
};

}  // namespace

Pickle::Pickle(std::span<const std::byte> bytes, std::span<const std::string_view> globals, const std::string& path,
               int64_t start) {
  Machine machine(bytes, globals, path, start, values_, persistent_);
  root_ = machine.run();
  size_ = machine.reached();
}

const char* kind_name(PickleValue::Kind kind) {
  constexpr std::array kNames = {
      "None",    "a bool", "an integer", "an integer beyond 64 bits", "a float",   "a string",  "bytes",
      "a tuple", "a list", "a dict",     "a class or function",       "an object", "a storage",
  };
  static_assert(kNames.size() == static_cast<size_t>(Kind::kPersistent) + 1);
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace adder::weights
