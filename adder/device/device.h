#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

// Devices behind one interface. What there is of CUDA lies in one file, which a build without CUDA replaces by another.
namespace adder::device {

// Whether this build has CUDA kernels, and whether there is a GPU to run them.
bool built_with_cuda();
int cuda_device_count();

// "cpu", "cuda" (the first GPU) or "cuda:1". Throws adder::Error where the name is none of these, where the build has
// no CUDA, or where there is no such GPU.
at::Device parse(const std::string& name);

// "NVIDIA H200" or "CPU".
std::string name(at::Device device);

// Waits until all work queued on the device is done.
void synchronize(at::Device device);

// Memory of LibTorch's allocator on a GPU: the most that tensors have taken since the last reset, and what the card has
// in all and free, in bytes. Zeros for the CPU.
struct Memory {
  int64_t peak = 0, total = 0, free = 0;
};
Memory memory(at::Device device);
void reset_peak_memory(at::Device device);

// Exponentials a second that a GPU's special function units make at most: 16 a clock and multiprocessor, at the highest
// clock. 0 for the CPU.
double exponentials_per_second(at::Device device);

// Copies a batch to the device from pinned memory, without waiting; on the CPU it is the tensor itself.
at::Tensor to_device(const at::Tensor& tensor, at::Device device);
// A copy in memory from which to_device() does not wait. Made ahead, on any thread.
at::Tensor pinned(const at::Tensor& tensor, at::Device device);

// Milliseconds of the device's own clock between two marks on the current stream.
class Stopwatch {
 public:
  explicit Stopwatch(at::Device device);
  ~Stopwatch();
  void start();
  void stop();
  double milliseconds();  // waits for stop()

 private:
  struct Events;
  std::unique_ptr<Events> events_;
};

// Values that the device writes and the host reads later: each push copies a small tensor of one shape into pinned
// memory in the order of the stream's work.
class Readback {
 public:
  Readback(const at::Tensor& like, int64_t slots);
  ~Readback();
  int64_t pending() const;
  int64_t slots() const;
  void push(const at::Tensor& values);  // an error where all slots are pending
  // The slots (slots, ...), and what push() does where the device's work has written the next one by itself.
  const at::Tensor& memory() const;
  void pushed();
  bool ready() const;  // whether the oldest has come
  at::Tensor pop();    // the oldest, waiting for it: on the CPU

 private:
  struct Slots;
  std::unique_ptr<Slots> slots_;
};

// A piece of work of fixed shapes that is recorded once and then started as a whole. Tensors that it reads and writes
// keep their places. CUDA only.
class Graph {
 public:
  explicit Graph(at::Device device);
  ~Graph();
  // Runs the body a few times before (libraries set themselves up), then records it. It must not wait for the device.
  void record(const std::function<void()>& warm_up, const std::function<void()>& body);
  void replay();

 private:
  struct Recorded;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace adder::device
