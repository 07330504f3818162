#include "adder/weights/torch_tensors.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>

#include "adder/core/check.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {

using Kind = PickleValue::Kind;

constexpr size_t kMaxDims = 64;
constexpr int kMaxDepth = 64;

struct DtypeGlobal {
  std::string_view name;
  at::ScalarType dtype;
};

constexpr std::array kStorages = {
    DtypeGlobal{"torch.DoubleStorage", at::kDouble},
    DtypeGlobal{"torch.FloatStorage", at::kFloat},
    DtypeGlobal{"torch.HalfStorage", at::kHalf},
    DtypeGlobal{"torch.BFloat16Storage", at::kBFloat16},
    DtypeGlobal{"torch.LongStorage", at::kLong},
    DtypeGlobal{"torch.IntStorage", at::kInt},
    DtypeGlobal{"torch.ShortStorage", at::kShort},
    DtypeGlobal{"torch.CharStorage", at::kChar},
    DtypeGlobal{"torch.ByteStorage", at::kByte},
    DtypeGlobal{"torch.BoolStorage", at::kBool},
    DtypeGlobal{"torch.ComplexFloatStorage", at::kComplexFloat},
    DtypeGlobal{"torch.ComplexDoubleStorage", at::kComplexDouble},
    DtypeGlobal{"torch.storage.UntypedStorage", at::kByte},
};

constexpr std::array kDtypes = {
    DtypeGlobal{"torch.float64", at::kDouble},
    DtypeGlobal{"torch.float32", at::kFloat},
    DtypeGlobal{"torch.float16", at::kHalf},
    DtypeGlobal{"torch.bfloat16", at::kBFloat16},
    DtypeGlobal{"torch.int64", at::kLong},
    DtypeGlobal{"torch.int32", at::kInt},
    DtypeGlobal{"torch.int16", at::kShort},
    DtypeGlobal{"torch.int8", at::kChar},
    DtypeGlobal{"torch.uint64", at::kUInt64},
    DtypeGlobal{"torch.uint32", at::kUInt32},
    DtypeGlobal{"torch.uint16", at::kUInt16},
    DtypeGlobal{"torch.uint8", at::kByte},
    DtypeGlobal{"torch.bool", at::kBool},
    DtypeGlobal{"torch.complex32", at::kComplexHalf},
    DtypeGlobal{"torch.complex64", at::kComplexFloat},
    DtypeGlobal{"torch.complex128", at::kComplexDouble},
    DtypeGlobal{"torch.float8_e5m2", at::kFloat8_e5m2},
    DtypeGlobal{"torch.float8_e4m3fn", at::kFloat8_e4m3fn},
};

constexpr std::string_view kRebuildTensor = "torch._utils._rebuild_tensor";
constexpr std::string_view kRebuildTensor2 = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kRebuildTensor3 = "torch._utils._rebuild_tensor_v3";
constexpr std::string_view kRebuildParameter = "torch._utils._rebuild_parameter";
constexpr std::string_view kRebuildParameterWithState = "torch._utils._rebuild_parameter_with_state";

// Besides storages and dtypes. What is no tensor may be anywhere among hyperparameters and schedules.
constexpr std::array<std::string_view, 12> kOthers = {
    "collections.OrderedDict",
    "collections.Counter",
    kRebuildTensor,
    kRebuildTensor2,
    kRebuildTensor3,
    kRebuildParameter,
    kRebuildParameterWithState,
    "torch.storage.TypedStorage",
    "torch.Size",
    "torch.device",
    "argparse.Namespace",
    "_codecs.encode",
};

// One of a list of arguments, or of a storage's description.
class Arguments {
 public:
  Arguments(const PickleValue& tuple, std::string where) : items_(tuple.items), where_(std::move(where)) {}

  size_t size() const { return items_.size(); }
  const std::string& where() const { return where_; }

  void expect_at_least(size_t count) const {
    ADDER_CHECK(size() >= count, "{}: must have {} arguments, got {}", where_, count, size());
  }

  const PickleValue& get(size_t i, Kind kind, const char* what) const {
    ADDER_CHECK(items_[i]->kind == kind, "{}: {} must be {}, got {}", where_, what, kind_name(kind),
                kind_name(items_[i]->kind));
    return *items_[i];
  }

  int64_t count(const PickleValue& value, const char* what) const {
    ADDER_CHECK(value.kind == Kind::kInt && value.integer >= 0, "{}: {} must be a whole number from 0, got {}", where_,
                what, value.kind == Kind::kInt ? std::to_string(value.integer) : kind_name(value.kind));
    return value.integer;
  }
  int64_t count(size_t i, const char* what) const { return count(*items_[i], what); }

  // torch.Size((2, 3)) is (2, 3).
  std::vector<int64_t> counts(size_t i, const char* what) const {
    const PickleValue* tuple = items_[i];
    const bool is_size = tuple->kind == Kind::kCall && tuple->items[0]->text == "torch.Size";
    if (is_size && tuple->items[1]->items.size() == 1) tuple = tuple->items[1]->items[0];
    ADDER_CHECK(tuple->kind == Kind::kTuple, "{}: {} must be a tuple, got {}", where_, what, kind_name(tuple->kind));
    ADDER_CHECK(tuple->items.size() <= kMaxDims, "{}: {} must have at most {} dimensions, got {}", where_, what,
                kMaxDims, tuple->items.size());
    std::vector<int64_t> found;
    for (const PickleValue* item : tuple->items) found.push_back(count(*item, what));
    return found;
  }

  template <size_t N>
  at::ScalarType dtype(size_t i, const std::array<DtypeGlobal, N>& known, const char* what) const {
    const PickleValue& global = get(i, Kind::kGlobal, what);
    const auto row = std::ranges::find(known, global.text, &DtypeGlobal::name);
    ADDER_CHECK(row != known.end(), "{}: {} cannot be {}", where_, what, global.text);
    return row->dtype;
  }

  bool is_none(size_t i) const { return items_[i]->kind == Kind::kNone; }

 private:
  const std::vector<const PickleValue*>& items_;
  std::string where_;
};

const PickleValue* find(const PickleValue& dict, std::string_view key) {
  // The last one, as in Python.
  for (size_t i = dict.items.size(); i > 0; i -= 2) {
    const PickleValue& found = *dict.items[i - 2];
    if (found.kind == Kind::kText && found.text == key) return dict.items[i - 1];
  }
  return nullptr;
}

bool is_true(const PickleValue& dict, std::string_view key) {
  const PickleValue* value = find(dict, key);
  return value && value->kind == Kind::kBool && value->integer != 0;
}

// Checks that the tensor lies within its storage and sets its extent.
void check_view(TorchTensor& tensor, const std::string& where) {
  const std::string shown = fmt::format("shape [{}], strides [{}], offset {}", fmt::join(tensor.sizes, ", "),
                                        fmt::join(tensor.strides, ", "), tensor.offset);
  ADDER_CHECK(tensor.strides.size() == tensor.sizes.size(), "{}: must have as many strides as sizes, got {}", where,
              shown);
  const int64_t element = static_cast<int64_t>(c10::elementSize(tensor.dtype));
  int64_t product = element, last = tensor.offset;
  bool overflow = false, empty = false;
  for (size_t i = 0; i < tensor.sizes.size(); ++i) {
    const int64_t size = tensor.sizes[i];
    empty = empty || size == 0;
    int64_t step = 0;
    overflow |= __builtin_mul_overflow(product, std::max<int64_t>(size, 1), &product);
    overflow |= __builtin_mul_overflow(std::max<int64_t>(size, 1) - 1, tensor.strides[i], &step);
    overflow |= __builtin_add_overflow(last, step, &last);
  }
  ADDER_CHECK(!overflow, "{}: {} are more than 64 bits can count", where, shown);
  if (empty) return;
  ADDER_CHECK(last < tensor.storage.bytes / element,
              "{}: {} end at element {}, but storage {} has {} bytes, {} elements", where, shown, last,
              shown_name(tensor.storage.key), tensor.storage.bytes, tensor.storage.bytes / element);
  tensor.extent = last - tensor.offset + 1;
}

TorchTensor read_tensor(std::string_view function, const PickleValue& arguments, const std::string& name,
                        const std::string& path) {
  const Arguments given(arguments,
                        fmt::format("{}: tensor {} (pickle, at byte {})", path, shown_name(name), arguments.position));
  const bool has_dtype = function == kRebuildTensor3;
  given.expect_at_least(has_dtype ? 7 : 4);
  TorchTensor tensor{name, read_storage(given.get(0, Kind::kPersistent, "the storage"), path), {}, 0, 0, {}, {}};
  tensor.dtype = has_dtype ? given.dtype(6, kDtypes, "dtype") : tensor.storage.dtype;
  tensor.offset = given.count(1, "offset");
  tensor.sizes = given.counts(2, "shape");
  tensor.strides = given.counts(3, "strides");
  const size_t metadata = has_dtype ? 7 : 6;
  if (given.size() > metadata && !given.is_none(metadata)) {
    const PickleValue& flags = given.get(metadata, Kind::kDict, "metadata");
    tensor.conj = is_true(flags, "conj");
    tensor.neg = is_true(flags, "neg");
    const bool real = c10::isFloatingType(tensor.dtype) && !c10::isFloat8Type(tensor.dtype);
    ADDER_CHECK((!tensor.conj || c10::isComplexType(tensor.dtype)) && (!tensor.neg || real),
                "{}: metadata: {} cannot be conjugated or negated so", given.where(), c10::toString(tensor.dtype));
  }
  check_view(tensor, given.where());
  return tensor;
}

// Walks through dicts. One dict can be reached in many ways, and then their names would outgrow all memory: so what
// they may take is bounded by the size of the pickle, far above what a real file needs.
class Collector {
 public:
  Collector(const std::string& path, int64_t pickle_size) : path_(path), budget_(1000 + 64 * pickle_size) {}

  void collect(const PickleValue& dict, const std::string& prefix, int depth) {
    ADDER_CHECK(depth <= kMaxDepth, "{}: dicts must be nested at most {} deep, got more at {}: one within itself?",
                path_, kMaxDepth, shown_name(prefix));
    for (size_t i = 0; i < dict.items.size(); i += 2) {
      const PickleValue &key = *dict.items[i], &value = *dict.items[i + 1];
      spend(1);
      if (value.kind != Kind::kDict && value.kind != Kind::kCall) continue;
      if (key.kind != Kind::kText && key.kind != Kind::kInt) continue;
      const std::string_view separator = depth == 0 ? "" : ".";
      spend(static_cast<int64_t>(prefix.size() + separator.size() + key.text.size()));
      const std::string own = key.kind == Kind::kText ? std::string(key.text) : std::to_string(key.integer);
      add(value, fmt::format("{}{}{}", prefix, separator, own), depth);
    }
  }

  std::vector<TorchTensor> take() { return std::move(tensors_); }

 private:
  void spend(int64_t amount) {
    budget_ -= amount;
    ADDER_CHECK(budget_ >= 0, "{}: the names of its tensors are far longer than the pickle that holds them", path_);
  }

  void add(const PickleValue& value, const std::string& name, int depth) {
    if (value.kind == Kind::kDict) return collect(value, name, depth + 1);
    const PickleValue *function = value.items[0], *arguments = value.items[1];
    if (function->text == kRebuildParameter || function->text == kRebuildParameterWithState) {
      ADDER_CHECK(!arguments->items.empty() && arguments->items[0]->kind == Kind::kCall,
                  "{}: parameter {} (pickle, at byte {}): must be made of a tensor", path_, shown_name(name),
                  value.position);
      function = arguments->items[0]->items[0];
      arguments = arguments->items[0]->items[1];
    }
    if (!function->text.starts_with(kRebuildTensor)) return;
    ADDER_CHECK(names_.insert(name).second, "{}: tensor {} appears twice", path_, shown_name(name));
    tensors_.push_back(read_tensor(function->text, *arguments, name, path_));
  }

  const std::string& path_;
  int64_t budget_;
  std::set<std::string> names_;
  std::vector<TorchTensor> tensors_;
};

}  // namespace

std::span<const std::string_view> torch_globals() {
  static const std::vector<std::string_view> all = [] {
    std::vector<std::string_view> names(kOthers.begin(), kOthers.end());
    for (const DtypeGlobal& row : kStorages) names.push_back(row.name);
    for (const DtypeGlobal& row : kDtypes) names.push_back(row.name);
    return names;
  }();
  return all;
}

TorchStorage read_storage(const PickleValue& value, const std::string& path) {
  const std::string where = fmt::format("{}: storage (pickle, at byte {})", path, value.position);
  const PickleValue& tuple = *value.items[0];
  ADDER_CHECK(tuple.kind == Kind::kTuple, "{}: must be described by a tuple, got {}", where, kind_name(tuple.kind));
  // "storage", its class, its key, its device, its number of elements, and formerly the part of it that is meant.
  const Arguments given(tuple, where);
  given.expect_at_least(5);
  ADDER_CHECK(given.get(0, Kind::kText, "what it is").text == "storage", "{}: must be a storage, got {}", where,
              shown_name(std::string(given.get(0, Kind::kText, "what it is").text)));
  TorchStorage storage{std::string(given.get(2, Kind::kText, "its key").text), given.dtype(1, kStorages, "its class")};
  const int64_t element = static_cast<int64_t>(c10::elementSize(storage.dtype));
  const int64_t count = given.count(4, "its number of elements");
  const bool overflow = __builtin_mul_overflow(count, element, &storage.bytes);
  ADDER_CHECK(!overflow, "{}: {} elements are more bytes than 64 bits can count", where, count);
  ADDER_CHECK(given.size() == 5 || given.is_none(5), "{}: is a part of a storage, as torch 0.1 wrote it", where);
  return storage;
}

std::vector<TorchTensor> read_state_dict(const Pickle& pickle, const std::string& path) {
  const PickleValue* dict = &pickle.root();
  ADDER_CHECK(dict->kind == Kind::kDict, "{}: must hold a dict of tensors, got {}", path, kind_name(dict->kind));
  for (const char* key : {"state_dict", "model"}) {
    const PickleValue* found = find(pickle.root(), key);
    if (!found || found->kind != Kind::kDict) continue;
    dict = found;
    break;
  }
  Collector collector(path, pickle.size());
  collector.collect(*dict, "", 0);
  std::vector<TorchTensor> tensors = collector.take();
  ADDER_CHECK(!tensors.empty(), "{}: its state dict holds no tensors", path);
  return tensors;
}

}  // namespace adder::weights
