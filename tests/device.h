#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <vector>

#ifdef ADDER_CUDA
#include <cuda_runtime_api.h>
#endif

// Tests run on every device there is: the CPU, and the first NVIDIA GPU where the tests are built with CUDA. With
// ADDER_REQUIRE_CUDA=1 a missing GPU is a failure; ADDER_TEST_DEVICE=cpu or =cuda leaves the other one out.
namespace adder::tests {

enum class Device { kCpu, kCuda };

inline bool cuda_is_there() {
#ifdef ADDER_CUDA
  static const bool there = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  }();
  return there;
#else
  return false;
#endif
}

inline bool cuda_is_required() {
  const char* required = std::getenv("ADDER_REQUIRE_CUDA");
  return required != nullptr && std::string(required) == "1";
}

// Ends a test that needs a GPU where there is none: skipped, or failed where one is required.
#define ADDER_NEEDS_CUDA()                                                                  \
  do {                                                                                      \
    if (cuda_is_there()) break;                                                             \
    ASSERT_FALSE(cuda_is_required()) << "ADDER_REQUIRE_CUDA=1, but there is no NVIDIA GPU"; \
    GTEST_SKIP() << "no NVIDIA GPU";                                                        \
  } while (false)

// Where the kernels of the test at hand run.
inline Device& current_device() {
  static Device device = Device::kCpu;
  return device;
}

template <typename Body>
void for_each_device(const Body& body) {
  const char* only = std::getenv("ADDER_TEST_DEVICE");
  const std::string chosen = only != nullptr ? only : "";
  const bool missing = cuda_is_required() && !cuda_is_there();
  ASSERT_FALSE(missing) << "ADDER_REQUIRE_CUDA=1, but there is no NVIDIA GPU, or no CUDA in this build";
  for (const Device device : {Device::kCpu, Device::kCuda}) {
    const char* name = device == Device::kCpu ? "cpu" : "cuda";
    if ((!chosen.empty() && chosen != name) || (device == Device::kCuda && !cuda_is_there())) continue;
    SCOPED_TRACE(name);
    current_device() = device;
    body();
    current_device() = Device::kCpu;
    if (testing::Test::HasFatalFailure()) return;
  }
}

// Memory that both the CPU and the GPU reach by the same address.
template <typename T>
struct SharedAllocator {
  using value_type = T;
  SharedAllocator() = default;
  template <typename U>
  SharedAllocator(const SharedAllocator<U>&) {}

  T* allocate(size_t count) {
#ifdef ADDER_CUDA
    void* data = nullptr;
    if (cuda_is_there()) {
      if (cudaMallocManaged(&data, std::max<size_t>(count * sizeof(T), 1)) != cudaSuccess) throw std::bad_alloc();
      return static_cast<T*>(data);
    }
#endif
    return std::allocator<T>().allocate(count);
  }
  void deallocate(T* data, size_t count) {
#ifdef ADDER_CUDA
    if (cuda_is_there()) {
      cudaFree(data);
      return;
    }
#endif
    std::allocator<T>().deallocate(data, count);
  }
  friend bool operator==(const SharedAllocator&, const SharedAllocator&) { return true; }
};

// What kernels under test read and write.
template <typename T>
using Buffer = std::vector<T, SharedAllocator<T>>;

// Calls on_cpu(params), or run_on_cuda(params) and waits for it.
template <typename Params, typename OnCpu, typename OnCuda>
void run_kernel_on_device(const Params& params, const OnCpu& on_cpu, const OnCuda& run_on_cuda) {
  if (current_device() == Device::kCpu) return on_cpu(params);
#ifdef ADDER_CUDA
  run_on_cuda(params);
  const cudaError_t status = cudaDeviceSynchronize();
  ASSERT_EQ(status, cudaSuccess) << cudaGetErrorString(status);
#else
  (void)run_on_cuda;
#endif
}

// A call for the CUDA build alone, with the params as on_cuda.
#ifdef ADDER_CUDA
#define ADDER_ON_CUDA(call) [](const auto& on_cuda) { call; }
#else
#define ADDER_ON_CUDA(call) [](const auto&) {}
#endif

}  // namespace adder::tests
