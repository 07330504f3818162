#include "adder/weights/published_folder.h"

#include <algorithm>
#include <set>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/json_text.h"
#include "adder/weights/torch_file.h"
#include "adder/weights/torch_file_writer.h"

namespace adder::weights {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
namespace {

constexpr const char* kConfig = "config.json";
constexpr const char* kSafetensors = "model.safetensors";
constexpr const char* kTorch = "pytorch_model.bin";
constexpr const char* kIndexSuffix = ".index.json";

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

ordered_json read_json(const fs::path& path) {
  const core::MappedFile file(path);
  return core::parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path.string());
}

// The tensors of each part, from an index's "weight_map".
std::map<std::string, std::vector<std::string>> parts_of(const fs::path& path) {
  const ordered_json index = read_json(path);
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

std::string part_name(size_t part, size_t parts) {
  return parts == 1 ? kSafetensors : fmt::format("model-{:05}-of-{:05}.safetensors", part + 1, parts);
}

void write_parts(const fs::path& folder, const PublishedContent& content, int64_t part_bytes) {
  std::vector<std::vector<std::pair<std::string, at::Tensor>>> parts(1);
  int64_t total = 0, in_part = 0;
  for (const auto& tensor : content.tensors) {
    const int64_t bytes = tensor.second.numel() * static_cast<int64_t>(tensor.second.element_size());
    if (in_part > 0 && in_part + bytes > part_bytes) parts.emplace_back(), in_part = 0;
    parts.back().push_back(tensor);
    in_part += bytes, total += bytes;
  }
  ordered_json map = ordered_json::object();
  for (size_t i = 0; i < parts.size(); ++i) {
    // The metadata that transformers asks for.
    write_safetensors(folder / part_name(i, parts.size()), parts[i], {{"format", "pt"}});
    for (const auto& [name, tensor] : parts[i]) map[name] = part_name(i, parts.size());
  }
  if (parts.size() == 1) return;
  const ordered_json index = {{"metadata", {{"total_size", total}}}, {"weight_map", std::move(map)}};
  core::write_file_atomically(folder / (std::string(kSafetensors) + kIndexSuffix), index.dump(2) + "\n");
}

}  // namespace

PublishedFolder::PublishedFolder(const fs::path& path) : path_(path) {
  ADDER_CHECK(is_there(path / kConfig), "{}: has no {}", path.string(), kConfig);
  config_ = read_json(path / kConfig);
  ADDER_CHECK(config_.is_object(), "{}: must hold an object, got {}", (path / kConfig).string(), config_.type_name());
  for (const std::string name : {kSafetensors, kTorch}) {
    if (is_there(path / name)) {
      add_file(name, nullptr);
      return;
    }
    const fs::path index = path / (name + kIndexSuffix);
    if (!is_there(index)) continue;
    for (const auto& [file, tensors] : parts_of(index)) {
      ADDER_CHECK(is_there(path / file), "{}: the part '{}' that {} lists is not there", path.string(), file,
                  index.filename().string());
      add_file(file, &tensors);
    }
    return;
  }
  fail("{}: has no weights: neither {} nor {} nor an index of their parts", path.string(), kSafetensors, kTorch);
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
  return is_there(path / kConfig) && !is_there(path / "checkpoint.json");
}

void write_published_folder(const fs::path& path, const PublishedContent& content, WeightsFile file,
                            int64_t part_bytes) {
  std::error_code error;
  ADDER_CHECK(!is_there(path) || (fs::is_directory(path, error) && fs::is_empty(path, error)),
              "{}: is there already; nothing is written over", path.string());
  core::write_folder_atomically(path, [&](const fs::path& folder) {
    core::write_file_atomically(folder / kConfig, content.config.dump(2) + "\n");
    if (file == WeightsFile::kTorch)
      write_torch_file(folder / kTorch, content.tensors);
    else
      write_parts(folder, content, part_bytes);
    for (const auto& [name, file_besides] : content.besides) {
      const core::MappedFile contents(file_besides);
      core::write_file_atomically(folder / name, [&](core::FileWriter& out) { out.write(contents.bytes()); });
    }
  });
}

}  // namespace adder::weights
