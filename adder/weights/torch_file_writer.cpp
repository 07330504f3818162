#include "adder/weights/torch_file_writer.h"

#include <ATen/core/Dict.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickler.h>

#include "adder/core/check.h"
#include "adder/core/files.h"

namespace adder::weights {

void write_torch_file(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  c10::Dict<std::string, at::Tensor> dictionary;
  for (const auto& [name, tensor] : tensors) {
    ADDER_CHECK(tensor.defined() && tensor.layout() == at::kStrided && tensor.is_cpu(),
                "{}: tensor '{}' must be dense and on the CPU", path.string(), name);
    ADDER_CHECK(!dictionary.contains(name), "{}: tensor '{}' is given twice", path.string(), name);
    dictionary.insert(name, tensor.contiguous());
  }
  std::string pickle;
  // Without tags of types, which only its own reader knows.
  torch::jit::Pickler pickler([&](const char* data, size_t size) { pickle.append(data, size); }, nullptr, nullptr,
                              nullptr, nullptr, /*tag_aggregates=*/false);
  pickler.protocol();
  pickler.pushIValue(dictionary);
  pickler.stop();
  core::write_file_atomically(path, [&](core::FileWriter& out) {
    caffe2::serialize::PyTorchStreamWriter archive([&](const void* data, size_t size) {
      out.write({static_cast<const std::byte*>(data), size});
      return size;
    });
    archive.writeRecord("data.pkl", pickle.data(), pickle.size());
    archive.writeRecord("byteorder", "little", 6);
    size_t i = 0;
    for (const at::Tensor& tensor : pickler.tensorData()) {
      const c10::Storage& storage = tensor.storage();
      archive.writeRecord("data/" + std::to_string(i++), storage.data(), storage.nbytes());
    }
    archive.writeEndOfFile();
  });
}

}  // namespace adder::weights
