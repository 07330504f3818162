#include "adder/device/device.h"

#include "adder/core/check.h"

namespace adder::device {

at::Device parse(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  int index = 0;
  bool known = name == "cuda";
  if (name.starts_with("cuda:") && name.size() > 5 && name.size() < 9) {
    known = name.find_first_not_of("0123456789", 5) == std::string::npos;
    if (known) index = std::stoi(name.substr(5));
  }
  ADDER_CHECK(known, "device must be \"cpu\", \"cuda\" or \"cuda:<number>\", got \"{}\"", name);
  ADDER_CHECK(built_with_cuda(),
              "device \"{}\": this program was built without CUDA (it needs nvcc 12.8 or newer when it is built)",
              name);
  const int count = cuda_device_count();
  ADDER_CHECK(index < count, "device \"{}\": there {} here that CUDA can use", name,
              count == 0   ? std::string("is no NVIDIA GPU")
              : count == 1 ? std::string("is one NVIDIA GPU, cuda:0,")
                           : fmt::format("are {} NVIDIA GPUs, from cuda:0,", count));
  return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
}

}  // namespace adder::device
