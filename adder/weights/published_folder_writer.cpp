#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/weights/published_folder.h"
#include "adder/weights/published_names.h"
#include "adder/weights/torch_file_writer.h"

namespace adder::weights {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
namespace {

std::string part_name(size_t part, size_t parts) {
  return parts == 1 ? kPublishedSafetensors : fmt::format("model-{:05}-of-{:05}.safetensors", part + 1, parts);
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
  core::write_file_atomically(folder / (std::string(kPublishedSafetensors) + kPublishedIndexSuffix),
                              index.dump(2) + "\n");
}

}  // namespace

void write_published_folder(const fs::path& path, const PublishedContent& content, WeightsFile file,
                            int64_t part_bytes) {
  std::error_code error;
  ADDER_CHECK(!fs::exists(path, error) || (fs::is_directory(path, error) && fs::is_empty(path, error)),
              "{}: is there already; nothing is written over", path.string());
  core::write_folder_atomically(path, [&](const fs::path& folder) {
    core::write_file_atomically(folder / kPublishedConfig, content.config.dump(2) + "\n");
    if (file == WeightsFile::kTorch)
      write_torch_file(folder / kPublishedTorch, content.tensors);
    else
      write_parts(folder, content, part_bytes);
    for (const auto& [name, file_besides] : content.besides) {
      const core::MappedFile contents(file_besides);
      core::write_file_atomically(folder / name, [&](core::FileWriter& out) { out.write(contents.bytes()); });
    }
  });
}

}  // namespace adder::weights
