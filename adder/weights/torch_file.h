#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "adder/core/files.h"
#include "adder/weights/torch_tensors.h"

namespace adder::weights {

// A checkpoint of PyTorch (`pytorch_model.bin`, .pt, .ckpt), memory-mapped: what torch.save writes, as a zip archive or
// in the form before torch 1.6. No code in it is run (adder/weights/pickle.h). Opening checks that every tensor of the
// state dict (read_state_dict) lies within the file; errors name the file, the tensor and the byte position.
class TorchFile {
 public:
  // Throws adder::Error where it is no such checkpoint, or holds what is not read.
  explicit TorchFile(const std::filesystem::path& path);

  // In the order of the state dict.
  const std::vector<std::string>& names() const { return names_; }
  bool contains(std::string_view name) const { return index_.contains(name); }  // whether it has this tensor

  // The tensor on the CPU, with the strides it was saved with, as SafetensorsFile::tensor: a view of the mapping where
  // its data is aligned, only to be read; conjugated and negated lazily, as it was saved. The first tensor of a storage
  // in an archive checks the storage's sum.
  at::Tensor tensor(std::string_view name) const;

 private:
  struct Storage;
  struct Entry {
    TorchTensor view;
    std::shared_ptr<Storage> storage;
  };
  using Storages = std::map<std::string, std::shared_ptr<Storage>>;

  Storages read_archive(std::vector<TorchTensor>& tensors) const;
  Storages read_legacy(std::vector<TorchTensor>& tensors) const;

  std::string path_;
  std::shared_ptr<const core::MappedFile> file_;
  std::vector<std::string> names_;
  std::map<std::string, Entry, std::less<>> index_;
};

}  // namespace adder::weights
