#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

// Devices behind one interface. What there is of CUDA lies in one file, which a build without CUDA replaces by another.
namespace adder::device {

bool built_with_cuda();   // whether this build has CUDA kernels
int cuda_device_count();  // the GPUs that can run them; 0 where the build has none

// "cpu", "cuda" (the first GPU) or "cuda:1". Throws adder::Error where the name is none of these, where the build has
// no CUDA, or where there is no such GPU.
at::Device parse(const std::string& name);

// "NVIDIA H200" or "CPU".
std::string name(at::Device device);

// Waits until all work queued on the device is done.
void synchronize(at::Device device);

// Memory of a GPU, in bytes. Zeros for the CPU.
struct Memory {
  int64_t peak = 0;   // the most that tensors of LibTorch's allocator have taken since the last reset
  int64_t total = 0;  // what the card has
  int64_t free = 0;   // what of it is free
};
Memory memory(at::Device device);           // as it is now
void reset_peak_memory(at::Device device);  // Memory::peak counts from here

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
  explicit Stopwatch(at::Device device);  // a GPU or the CPU
  ~Stopwatch();
  void start();           // the first mark
  void stop();            // the second
  double milliseconds();  // waits for stop()

 private:
  struct Events;
  std::unique_ptr<Events> events_;
};

// Values that the device writes and the host reads later: each push copies a small tensor of one shape into pinned
// memory in the order of the stream's work.
class Readback {
 public:
  // For values of the shape and type of `like`, on its device; up to `slots` of them wait to be read.
  Readback(const at::Tensor& like, int64_t slots);
  ~Readback();
  int64_t pending() const;              // pushes that have not been popped
  int64_t slots() const;                // how many there may be
  void push(const at::Tensor& values);  // an error where all slots are pending
  const at::Tensor& memory() const;     // the slots (slots, ...), pinned
  // Instead of push(), where the device's work has written the next slot by itself.
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
  explicit Graph(at::Device device);  // a GPU
  ~Graph();
  // Runs the body a few times before (libraries set themselves up), then records it. It must not wait for the device.
  void record(const std::function<void()>& warm_up, const std::function<void()>& body);
  void replay();  // queues the whole work once more

 private:
  struct Recorded;
  std::unique_ptr<Recorded> recorded_;
};

}  // namespace adder::device
