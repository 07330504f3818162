#include "adder/weights/published_folder.h"

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"
#include "adder/weights/published_names.h"
#include "adder/weights/torch_file.h"

namespace adder::weights {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
namespace {

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

std::string_view text_of(const core::MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// The tensors of each part, from an index's "weight_map".
std::map<std::string, std::vector<std::string>> parts_of(const fs::path& path) {
  const core::MappedFile mapped(path);
  const nlohmann::json index = core::parse_json_sorted(text_of(mapped), path.string());
  ADDER_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
              "{}: must hold an object \"weight_map\"", path.string());
  std::map<std::string, std::vector<std::string>> parts;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    ADDER_CHECK(file.is_string(), "{}: tensor {}: its file must be a text, got {}", path.string(), shown_name(tensor),
                file.type_name());
    const std::string name = file.get<std::string>();
    ADDER_CHECK(!name.empty() && name != "." && name != ".." && name.find_first_of("/\\") == std::string::npos,
                "{}: tensor {}: its file must lie in the same folder, got {}", path.string(), shown_name(tensor),
                shown_name(name));
    parts[name].push_back(tensor);
  }
  ADDER_CHECK(!parts.empty(), "{}: lists no tensors", path.string());
  return parts;
}

}  // namespace

PublishedFolder::PublishedFolder(const fs::path& path) : path_(path) {
  ADDER_CHECK(is_there(path / kPublishedConfig), "{}: has no {}", path.string(), kPublishedConfig);
  const core::MappedFile config(path / kPublishedConfig);
  config_ = core::parse_json(text_of(config), (path / kPublishedConfig).string());
  ADDER_CHECK(config_.is_object(), "{}: must hold an object, got {}", (path / kPublishedConfig).string(),
              config_.type_name());
  for (const std::string name : {kPublishedSafetensors, kPublishedTorch}) {
    if (is_there(path / name)) {
      add_file(name, nullptr);
      return;
    }
    const fs::path index = path / (name + kPublishedIndexSuffix);
    if (!is_there(index)) continue;
    for (const auto& [file, tensors] : parts_of(index)) {
      ADDER_CHECK(is_there(path / file), "{}: the part '{}' that {} lists is not there", path.string(), file,
                  index.filename().string());
      add_file(file, &tensors);
    }
    return;
  }
  fail("{}: has no weights: neither {} nor {} nor an index of their parts", path.string(), kPublishedSafetensors,
       kPublishedTorch);
}

void PublishedFolder::add_file(const std::string& name, const std::vector<std::string>* listed) {
  const auto add_from = [&](const auto& file) {
    for (const std::string& tensor : listed ? *listed : file.names()) {
      ADDER_CHECK(file.contains(tensor), "{}: has no tensor {}, which the index says is there", (path_ / name).string(),
                  shown_name(tensor));
      tensors_.emplace(tensor, file.tensor(tensor));
    }
  };
  if (name.ends_with(".safetensors"))
    add_from(SafetensorsFile(path_ / name));
  else
    add_from(TorchFile(path_ / name));
}

bool is_published_folder(const fs::path& path) {
  return is_there(path / kPublishedConfig) && !is_there(path / "checkpoint.json");
}

}  // namespace adder::weights
