#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace adder::weights {

// What a pickle holds. Classes and functions are names and nothing more: a call of one is kept as a value, never made.
struct PickleValue {
  enum class Kind : uint8_t {
    kNone,
    kBool,
    kInt,
    kBigInt,  // beyond 64 bits: `text` is its little-endian two's complement
    kFloat,
    kText,
    kBytes,
    kTuple,
    kList,
    kDict,        // dict or OrderedDict; `items` are key, value, key, value, ... in the order in which they were set
    kGlobal,      // `text` is its name, "torch.FloatStorage"
    kCall,        // items[0] is a global, items[1] the tuple of its arguments
    kPersistent,  // items[0] says what: in a checkpoint, which storage
  };

  Kind kind;
  int64_t position;  // of its opcode, in bytes from the start of the file
  union {
    int64_t integer = 0;  // also of a kBool
    double real;
  };
  std::string_view text;
  std::vector<const PickleValue*> items;
};

// One pickle, read by a machine that runs no code: it knows the containers, numbers and strings of protocols 2 to 5 and
// those globals that it is told of; all else is an error that names it and the byte position. A value may be reached
// many times and may contain itself. Strings are views of the bytes (globals, of `globals`), which must live as long.
//
// A pickle of n bytes takes at most 200 n bytes of memory and O(n log n) time.
class Pickle {
 public:
  // Reads the pickle that `bytes` begin with; they begin at byte `start` of the file. Errors begin with `path`.
  Pickle(std::span<const std::byte> bytes, std::span<const std::string_view> globals, const std::string& path,
         int64_t start = 0);

  const PickleValue& root() const { return *root_; }
  int64_t size() const { return size_; }  // in bytes
  // All values of kPersistent, in the order of the file.
  const std::vector<const PickleValue*>& persistent() const { return persistent_; }

 private:
  // A deque, so that values keep their places, and that none of them destroys another.
  std::deque<PickleValue> values_;
  std::vector<const PickleValue*> persistent_;
  const PickleValue* root_ = nullptr;
  int64_t size_ = 0;
};

// "a list", for error messages.
const char* kind_name(PickleValue::Kind kind);

}  // namespace adder::weights
