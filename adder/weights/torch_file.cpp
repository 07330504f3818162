#include "adder/weights/torch_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "adder/core/check.h"
#include "adder/weights/safetensors_header.h"
#include "adder/weights/stored_zip.h"

namespace adder::weights {
namespace {

using Kind = PickleValue::Kind;

// 0x1950a86a20f9469cfc6c, as a pickle has it.
constexpr std::string_view kLegacyMagic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int64_t kLegacyProtocol = 1001;

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool is_tar(std::string_view bytes) {
  constexpr size_t kAt = 257;
  return bytes.size() > kAt && bytes.substr(kAt).starts_with("ustar");
}

// A file of the form before torch 1.6: pickles and then storages, one after the other.
class LegacyReader {
 public:
  LegacyReader(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  Pickle next() {
    Pickle pickle(bytes_.subspan(static_cast<size_t>(at_)), torch_globals(), path_, at_);
    at_ += pickle.size();
    return pickle;
  }

  // The next storage: the number of its elements, and they.
  StoredEntry storage(const TorchStorage& expected) {
    const std::string where = fmt::format("{}: storage {}, at byte {}", path_, shown_name(expected.key), at_);
    int64_t count = 0;
    ADDER_CHECK(left() >= static_cast<int64_t>(sizeof(count)), "{}: {} bytes are left: is the file cut off?", where,
                left());
    std::memcpy(&count, bytes_.data() + at_, sizeof(count));
    at_ += static_cast<int64_t>(sizeof(count));
    const int64_t wanted = expected.bytes / static_cast<int64_t>(c10::elementSize(expected.dtype));
    ADDER_CHECK(count == wanted, "{}: must have {} elements, as the pickle says, but has {}", where, wanted, count);
    ADDER_CHECK(expected.bytes <= left(), "{}: its {} bytes end beyond the file, which has {}: is it cut off?", where,
                expected.bytes, bytes_.size());
    const StoredEntry found{bytes_.subspan(static_cast<size_t>(at_), static_cast<size_t>(expected.bytes)), at_, 0};
    at_ += expected.bytes;
    return found;
  }

  int64_t at() const { return at_; }

 private:
  int64_t left() const { return static_cast<int64_t>(bytes_.size()) - at_; }

  std::span<const std::byte> bytes_;
  const std::string& path_;
  int64_t at_ = 0;
};

void check_little_endian(const PickleValue& system, const std::string& path) {
  ADDER_CHECK(system.kind == Kind::kDict, "{}: the pickle at byte {} must say on what system it was written", path,
              system.position);
  for (size_t i = 0; i < system.items.size(); i += 2) {
    const PickleValue &key = *system.items[i], &value = *system.items[i + 1];
    if (key.kind != Kind::kText || key.text != "little_endian") continue;
    ADDER_CHECK(value.kind == Kind::kBool && value.integer != 0, "{}: must be little-endian, but was written otherwise",
                path);
  }
}

}  // namespace

struct TorchFile::Storage {
  StoredEntry entry;
  std::mutex mutex;
  bool checked = false;
  at::Tensor copy;  // where a tensor cannot lie on the addresses of the mapping; one for all tensors
};

TorchFile::TorchFile(const std::filesystem::path& path)
    : path_(path.string()), file_(std::make_shared<core::MappedFile>(path)) {
  const auto bytes = file_->bytes();
  ADDER_CHECK(!is_tar(text_of(bytes)), "{}: is a tar archive, as torch 0.1.9 and older wrote: not read", path_);
  const bool archive = StoredZip::is_zip(bytes);
  ADDER_CHECK(archive || (!bytes.empty() && bytes[0] == std::byte{0x80}),
              "{}: not a checkpoint of PyTorch: must begin as a zip archive or as a pickle", path_);
  std::vector<TorchTensor> tensors;
  const Storages storages = archive ? read_archive(tensors) : read_legacy(tensors);
  for (TorchTensor& tensor : tensors) {
    const std::shared_ptr<Storage>& storage = storages.at(tensor.storage.key);
    const int64_t size = static_cast<int64_t>(storage->entry.data.size());
    ADDER_CHECK(size == tensor.storage.bytes, "{}: tensor {}: its storage {} must have {} bytes, but has {}", path_,
                shown_name(tensor.name), shown_name(tensor.storage.key), tensor.storage.bytes, size);
    names_.push_back(tensor.name);
    std::string name = tensor.name;
    index_.emplace(std::move(name), Entry{std::move(tensor), storage});
  }
}

TorchFile::Storages TorchFile::read_archive(std::vector<TorchTensor>& tensors) const {
  const StoredZip archive(file_->bytes(), path_);
  const std::string first = archive.first_name();
  const std::string root = first.substr(0, first.find('/'));
  ADDER_CHECK(archive.contains(root + "/data.pkl"), "{}: not a checkpoint of PyTorch: the zip archive has no {}", path_,
              shown_name(root + "/data.pkl"));
  ADDER_CHECK(!archive.contains(root + "/constants.pkl"),
              "{}: is a TorchScript program; only what torch.save writes is read", path_);
  const auto checked_entry = [&](const std::string& name) {
    const StoredEntry found = archive.entry(name);
    ADDER_CHECK(crc_agrees(found), "{}: {}, at byte {}: does not agree with its sum: the file is damaged", path_,
                shown_name(name), found.position);
    return found;
  };
  if (archive.contains(root + "/byteorder")) {
    const std::string order(text_of(checked_entry(root + "/byteorder").data));
    ADDER_CHECK(order == "little", "{}: byteorder must be little, got {}", path_, shown_name(order));
  }
  const StoredEntry object = checked_entry(root + "/data.pkl");
  tensors = read_state_dict(Pickle(object.data, torch_globals(), path_, object.position), path_);

  Storages storages;
  size_t total = 0;
  for (const TorchTensor& tensor : tensors) {
    std::shared_ptr<Storage>& storage = storages[tensor.storage.key];
    if (storage) continue;
    storage = std::make_shared<Storage>();
    storage->entry = archive.entry(fmt::format("{}/data/{}", root, tensor.storage.key));
    total += storage->entry.data.size();
    // Else a small file could ask for any amount of memory.
    ADDER_CHECK(total <= file_->bytes().size(), "{}: its storages must not overlap, but have more bytes than the file",
                path_);
  }
  return storages;
}

TorchFile::Storages TorchFile::read_legacy(std::vector<TorchTensor>& tensors) const {
  LegacyReader reader(file_->bytes(), path_);
  const Pickle magic = reader.next();
  ADDER_CHECK(magic.root().kind == Kind::kBigInt && magic.root().text == kLegacyMagic,
              "{}: not a checkpoint of PyTorch: the pickle at byte 0 must be its magic number", path_);
  const Pickle protocol = reader.next();
  ADDER_CHECK(protocol.root().kind == Kind::kInt && protocol.root().integer == kLegacyProtocol,
              "{}: the pickle before byte {} must be the protocol {}", path_, reader.at(), kLegacyProtocol);
  const Pickle system = reader.next();
  check_little_endian(system.root(), path_);
  const Pickle object = reader.next();
  tensors = read_state_dict(object, path_);

  // Storages of tensors that are left out must be passed over too.
  std::map<std::string, TorchStorage> described;
  for (const PickleValue* value : object.persistent()) {
    TorchStorage storage = read_storage(*value, path_);
    std::string key = storage.key;
    described.emplace(std::move(key), std::move(storage));
  }
  const Pickle keys = reader.next();
  ADDER_CHECK(keys.root().kind == Kind::kList, "{}: the pickle before byte {} must list the storages", path_,
              reader.at());
  Storages storages;
  for (const PickleValue* key : keys.root().items) {
    ADDER_CHECK(key->kind == Kind::kText, "{}: at byte {}: a storage's key must be a string, got {}", path_,
                key->position, kind_name(key->kind));
    const auto found = described.find(std::string(key->text));
    ADDER_CHECK(found != described.end(), "{}: at byte {}: no tensor has the storage {}", path_, key->position,
                shown_name(std::string(key->text)));
    auto storage = std::make_shared<Storage>();
    storage->entry = reader.storage(found->second);
    storages[found->first] = std::move(storage);
  }
  for (const TorchTensor& tensor : tensors) {
    ADDER_CHECK(storages.contains(tensor.storage.key), "{}: tensor {}: its storage {} is not in the file", path_,
                shown_name(tensor.name), shown_name(tensor.storage.key));
  }
  return storages;
}

at::Tensor TorchFile::tensor(std::string_view name) const {
  const auto found = index_.find(name);
  ADDER_CHECK(found != index_.end(), "{}: has no tensor {} (it has {} tensors)", path_, shown_name(std::string(name)),
              names_.size());
  const TorchTensor& view = found->second.view;
  Storage& storage = *found->second.storage;
  const auto options = at::TensorOptions().dtype(view.dtype);
  if (view.extent == 0) return at::empty(view.sizes, options);
  const std::lock_guard lock(storage.mutex);
  if (!storage.checked) {
    ADDER_CHECK(crc_agrees(storage.entry),
                "{}: tensor {}: its storage, at byte {}, does not agree with its sum: the file is damaged", path_,
                shown_name(view.name), storage.entry.position);
    storage.checked = true;
  }

  const size_t element = c10::elementSize(view.dtype);
  const auto data = storage.entry.data.subspan(static_cast<size_t>(view.offset) * element,
                                               static_cast<size_t>(view.extent) * element);
  if (view.dtype == at::kBool) {
    const auto bad = std::ranges::find_if(data, [](std::byte b) { return b > std::byte{1}; });
    ADDER_CHECK(bad == data.end(), "{}: tensor {}: a bool must be 0 or 1, got {} at byte {}", path_,
                shown_name(view.name), static_cast<int>(*bad),
                storage.entry.position + view.offset + (bad - data.begin()));
  }
  const std::byte* start = data.data();
  if (reinterpret_cast<uintptr_t>(start) % element != 0) {
    const auto all = storage.entry.data;
    if (!storage.copy.defined()) {
      storage.copy = at::empty({static_cast<int64_t>(all.size())}, at::kByte);
      std::memcpy(storage.copy.mutable_data_ptr(), all.data(), all.size());
    }
    start = static_cast<const std::byte*>(storage.copy.const_data_ptr()) + (start - all.data());
  }
  const auto keep_alive = [file = file_, copy = storage.copy](void*) {};
  at::Tensor values = at::from_blob(const_cast<std::byte*>(start), view.sizes, view.strides, keep_alive, options);
  // Lazily: where strides are 0 the values can be far more than the file has.
  if (view.conj) values = values.conj();
  if (view.neg) values = at::_neg_view(values);
  return values;
}

}  // namespace adder::weights
