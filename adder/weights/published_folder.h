#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adder/weights/safetensors.h"

// Folders of weights as models are published: config.json beside model.safetensors, pytorch_model.bin, or an index of
// the parts of either (model.safetensors.index.json, pytorch_model.bin.index.json).
namespace adder::weights {

class PublishedFolder {
 public:
  // Opens every file; errors name it and what is wrong.
  explicit PublishedFolder(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  const nlohmann::ordered_json& config() const { return config_; }
  const std::map<std::string, at::Tensor, std::less<>>& tensors() const { return tensors_; }  // on the CPU, only read

 private:
  void add_file(const std::string& name, const std::vector<std::string>* listed);

  std::filesystem::path path_;
  nlohmann::ordered_json config_;
  std::map<std::string, at::Tensor, std::less<>> tensors_;
};

// Whether the folder holds a config.json and no Adder checkpoint.
bool is_published_folder(const std::filesystem::path& path);

enum class WeightsFile { kSafetensors, kTorch };

struct PublishedContent {
  nlohmann::ordered_json config;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  std::vector<std::pair<std::string, std::filesystem::path>> besides;  // names, and files copied as they are
};

// Creates a folder at once; it must not exist, or be empty. Safetensors of more than `part_bytes` are parted, with an
// index.
void write_published_folder(const std::filesystem::path& path, const PublishedContent& content, WeightsFile file,
                            int64_t part_bytes = int64_t{5} << 30);

}  // namespace adder::weights
