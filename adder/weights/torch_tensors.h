#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "adder/weights/pickle.h"

namespace adder::weights {

// A storage as a checkpoint's pickle names it.
struct TorchStorage {
  std::string key;
  at::ScalarType dtype;
  int64_t bytes = 0;
};

// A tensor as a checkpoint's pickle describes it: a view of a storage, within which it lies.
struct TorchTensor {
  std::string name;
  TorchStorage storage;
  at::ScalarType dtype;
  int64_t offset = 0;  // in elements
  int64_t extent = 0;  // elements from the first to the last, both counted; 0 where it has none
  std::vector<int64_t> sizes, strides;
  bool conj = false, neg = false;  // its values are the conjugates, the negatives of those in the storage
};

// The classes and functions that a pickle of tensors may ask for. None of them is called.
std::span<const std::string_view> torch_globals();

// What a value of kPersistent says; errors begin with `path`.
TorchStorage read_storage(const PickleValue& value, const std::string& path);

// The tensors of a checkpoint's state dict: of the dict under "state_dict" or "model" where there is one, else of all
// that was saved. Dicts within it are joined to the names by dots; whatever is no tensor is left out. At least one.
std::vector<TorchTensor> read_state_dict(const Pickle& pickle, const std::string& path);

}  // namespace adder::weights
