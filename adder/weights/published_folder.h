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

// A published folder, opened; its tensors stay in the mapped files until they are read.
class PublishedFolder {
 public:
  // Opens every file; errors name it and what is wrong.
  explicit PublishedFolder(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }       // the folder
  const nlohmann::ordered_json& config() const { return config_; }  // config.json
  // By name, on the CPU: views of the files, only to be read.
  const std::map<std::string, at::Tensor, std::less<>>& tensors() const { return tensors_; }

 private:
  void add_file(const std::string& name, const std::vector<std::string>* listed);

  std::filesystem::path path_;
  nlohmann::ordered_json config_;
  std::map<std::string, at::Tensor, std::less<>> tensors_;
};

// Whether the folder holds a config.json and no Adder checkpoint.
bool is_published_folder(const std::filesystem::path& path);

// How weights are stored: model.safetensors or pytorch_model.bin.
enum class WeightsFile { kSafetensors, kTorch };

// What write_published_folder() writes.
struct PublishedContent {
  nlohmann::ordered_json config;                                            // config.json
  std::vector<std::pair<std::string, at::Tensor>> tensors;                  // of any device and strides
  std::vector<std::pair<std::string, std::filesystem::path>> besides = {};  // names, and files copied as they are
};

// Creates a folder at once; it must not exist, or be empty. Safetensors of more than `part_bytes` are parted, with an
// index.
void write_published_folder(const std::filesystem::path& path, const PublishedContent& content, WeightsFile file,
                            int64_t part_bytes = int64_t{5} << 30);

}  // namespace adder::weights
