#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace adder::weights {

// Writes what torch.load reads (also with weights_only): a dictionary of tensors, on the CPU, at once
// (core::write_file_atomically). Tensors that share memory are stored once.
void write_torch_file(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, at::Tensor>>& tensors);

}  // namespace adder::weights
