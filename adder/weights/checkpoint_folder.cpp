#include "adder/weights/checkpoint_folder.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <system_error>

#include "adder/core/check.h"
#include "adder/core/json_text.h"
#include "adder/weights/checkpoint_format.h"

namespace adder::weights {
namespace fs = std::filesystem;
using namespace checkpoint;
using nlohmann::ordered_json;
namespace {

void check_hash(std::string_view text, const std::string& path) {
  constexpr size_t kDigits = 32;
  constexpr size_t kTail = kBeforeHash.size() + kDigits + kAfterHash.size();
  const std::string_view tail = text.substr(text.size() - std::min(text.size(), kTail));
  ADDER_CHECK(tail.size() == kTail && tail.starts_with(kBeforeHash) && tail.ends_with(kAfterHash),
              "{}: damaged: its last line must be its hash", path);
  const std::string_view expected = tail.substr(kBeforeHash.size(), kDigits);
  const std::string got = hash_text(std::string(text.substr(0, text.size() - kTail)).append(kEnd));
  ADDER_CHECK(expected == got, "{}: damaged: its hash must be {} as its last line says, got {}", path,
              shown_name(std::string(expected)), got);
}

std::string shown_value(const ordered_json& value) {
  return value.is_string() ? shown_name(value.get<std::string>())
                           : fmt::format("{} ({})", value.type_name(), shown_name(value.dump()));
}

bool is_hash(const ordered_json& value) {
  return value.is_string() && value.get_ref<const std::string&>().size() == 32;
}

// The form of "files" and "tensors". A right hash says that the text is as it was written, not who wrote it.
void check_listing(const ordered_json& document, const std::string& path) {
  const ordered_json &files = document["files"], &tensors = document["tensors"];
  ADDER_CHECK(document["adder_version"].is_string(), "{}: \"adder_version\" must be a string", path);
  ADDER_CHECK(document["state"].is_object(), "{}: \"state\" must be an object", path);
  ADDER_CHECK(files.is_object() && tensors.is_object() && files.size() == tensors.size(),
              "{}: \"files\" and \"tensors\" must be objects with the same keys", path);
  for (const auto& [name, facts] : files.items()) {
    const std::string where = fmt::format("{}: file {}", path, shown_name(name));
    ADDER_CHECK(is_file_name(name), "{}: must have a plain name that ends in {}", where, kSuffix);
    ADDER_CHECK(facts.is_object() && facts.size() == 2 && facts.contains("bytes") && facts.contains("xxh3_128"),
                "{}: must have the fields bytes and xxh3_128", where);
    ADDER_CHECK(facts["bytes"].is_number_unsigned() && is_hash(facts["xxh3_128"]),
                "{}: must have a size in bytes and a hash of 32 digits", where);
    ADDER_CHECK(tensors.contains(name) && tensors[name].is_object(), "{}: must have its tensors listed", where);
    for (const auto& [tensor, hash] : tensors[name].items()) {
      ADDER_CHECK(is_hash(hash), "{}: tensor {} must have a hash of 32 digits", where, shown_name(tensor));
    }
  }
}

// The document, of the right form and with the right hash.
ordered_json read_document(const fs::path& folder) {
  check_folder(folder);
  const fs::path file = folder / kDocument;
  const std::string path = file.string();
  ADDER_CHECK(kind_of(file) != fs::file_type::not_found, "{}: is no Adder checkpoint: it has no {}", folder.string(),
              kDocument);
  const core::MappedFile mapped(file);
  const std::string_view text(reinterpret_cast<const char*>(mapped.bytes().data()), mapped.bytes().size());
  const ordered_json document = core::parse_json(text, path);
  const auto field = [&](const char* name) {
    return document.is_object() && document.contains(name) ? document[name] : ordered_json();
  };
  const ordered_json format = field("format"), version = field("version"), writer = field("adder_version");
  ADDER_CHECK(format == kFormat, "{}: is no Adder checkpoint: \"format\" must be \"{}\", got {}", path, kFormat,
              shown_value(format));
  ADDER_CHECK(version.is_number_unsigned() && version > 0, "{}: \"version\" must be a whole number from 1, got {}",
              path, shown_value(version));
  // Before the hash, which a newer version may form in another way.
  if (version > kFormatVersion)
    throw NewerFormat(fmt::format(
        "{}: written by a newer version of Adder ({}): its format has version {}, this program reads up to {}", path,
        shown_value(writer), version.dump(), kFormatVersion));
  check_hash(text, path);
  std::vector<std::string> keys;
  for (const auto& item : document.items()) keys.push_back(item.key());
  const std::vector<std::string> expected = {"format", "version", "adder_version", "files", "tensors", "state", "hash"};
  ADDER_CHECK(keys == expected, "{}: must have the keys {}", path, fmt::join(expected, ", "));
  check_listing(document, path);
  return document;
}

void check_names(const SafetensorsFile& file, const ordered_json& listed, const std::string& path) {
  std::set<std::string_view> names;
  for (const auto& item : listed.items()) names.insert(item.key());
  for (const std::string& name : file.names()) {
    ADDER_CHECK(names.contains(name), "{}: has the tensor {}, which {} does not list", path, shown_name(name),
                kDocument);
  }
  for (const auto& item : listed.items()) {
    ADDER_CHECK(file.contains(item.key()), "{}: tensor {} is missing; {} lists it", path, shown_name(item.key()),
                kDocument);
  }
}

// "damaged tensors: "a", "b""; nothing where every tensor has its hash. The names have been checked.
std::string damaged_tensors(const SafetensorsFile& file, const ordered_json& listed) {
  constexpr size_t kShown = 10;
  std::vector<std::string> damaged;
  for (const auto& [name, hash] : listed.items()) {
    bool whole = false;
    try {
      whole = tensor_hash(file.tensor(name)) == hash.get<std::string>();
    } catch (const Error&) {  // values that its dtype does not have
    }
    if (!whole) damaged.push_back(shown_name(name));
  }
  if (damaged.empty()) return "";
  const size_t shown = std::min(damaged.size(), kShown);
  return fmt::format("damaged tensors ({} of {}): {}{}", damaged.size(), listed.size(),
                     fmt::join(damaged.begin(), damaged.begin() + static_cast<int64_t>(shown), ", "),
                     shown < damaged.size() ? ", ..." : "");
}

// Where in a file whose hash is wrong the damage lies.
std::string damage_in(const fs::path& path, const ordered_json& listed) {
  try {
    const SafetensorsFile file(path);
    check_names(file, listed, path.string());
    const std::string tensors = damaged_tensors(file, listed);
    return tensors.empty() ? "every tensor is whole, so its header is not" : tensors;
  } catch (const Error& error) {
    return error.what();
  }
}

SafetensorsFile open_verified(const fs::path& path, const ordered_json& facts, const ordered_json& listed,
                              Verify verify) {
  const std::string shown = path.string();
  ADDER_CHECK(kind_of(path) != fs::file_type::not_found, "{}: is missing; {} lists it", shown, kDocument);
  {
    const core::MappedFile mapped(path);
    const size_t bytes = mapped.bytes().size();
    ADDER_CHECK(facts["bytes"] == bytes, "{}: must have {} bytes as {} says, has {}{}", shown, facts["bytes"].dump(),
                kDocument, bytes, facts["bytes"] > bytes ? ": is it cut off?" : "");
    const std::string hash = core::hash_bytes(mapped.bytes());
    if (facts["xxh3_128"] != hash) {
      fail("{}: damaged: its hash must be {} as {} says, got {}; {}", shown, facts["xxh3_128"].get<std::string>(),
           kDocument, hash, damage_in(path, listed));
    }
  }
  SafetensorsFile file(path);
  check_names(file, listed, shown);
  if (verify == Verify::kFilesAndTensors) {
    const std::string tensors = damaged_tensors(file, listed);
    ADDER_CHECK(tensors.empty(), "{}: the file has its hash, but {}", shown, tensors);
  }
  return file;
}

}  // namespace

fs::file_type checkpoint::kind_of(const fs::path& path) {
  std::error_code error;
  const fs::file_type kind = fs::status(path, error).type();
  ADDER_CHECK(kind != fs::file_type::none, "cannot look at '{}': {}", path.string(), error.message());
  return kind;
}

void checkpoint::check_folder(const fs::path& path) {
  const fs::file_type kind = kind_of(path);
  ADDER_CHECK(kind != fs::file_type::not_found, "{}: there is no such folder", path.string());
  ADDER_CHECK(kind == fs::file_type::directory, "{}: must be a folder, but is a file", path.string());
}

CheckpointFolder::CheckpointFolder(const fs::path& path, Verify verify) : path_(path) {
  const ordered_json document = read_document(path);
  adder_version_ = document["adder_version"].get<std::string>();
  state_ = document["state"];
  for (const auto& [name, facts] : document["files"].items()) {
    const ordered_json& listed = document["tensors"][name];
    std::vector<std::string> tensors;
    for (const auto& item : listed.items()) tensors.push_back(item.key());
    files_.push_back({name, std::move(tensors), open_verified(path / name, facts, listed, verify)});
  }
}

const CheckpointFolder::File* CheckpointFolder::find(std::string_view file) const {
  const auto found = std::ranges::find(files_, file, &File::name);
  return found == files_.end() ? nullptr : &*found;
}

NamedTensors CheckpointFolder::tensors(std::string_view file, Access access) const {
  const File* found = find(file);
  ADDER_CHECK(found, "{}: the checkpoint has no file {}", path_.string(), shown_name(std::string(file)));
  NamedTensors result;
  for (const std::string& name : found->tensors) {
    const at::Tensor tensor = found->contents.tensor(name);
    result.emplace_back(name, access == Access::kCopy ? tensor.clone() : tensor);
  }
  return result;
}

}  // namespace adder::weights
