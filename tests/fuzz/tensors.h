#pragma once

#include <ATen/core/Tensor.h>

namespace adder::fuzz {

// Reads the first and the last byte of a tensor's values, for a sanitizer to see.
inline void touch(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return;
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  const auto* bytes = static_cast<const volatile unsigned char*>(tensor.const_data_ptr());
  (void)bytes[0];
  (void)bytes[(last + 1) * static_cast<int64_t>(tensor.element_size()) - 1];
}

// All tensors of a file.
template <typename File>
void touch_all(const File& file) {
  for (const std::string& name : file.names()) touch(file.tensor(name));
}

}  // namespace adder::fuzz
