#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>

#include <chrono>
#include <deque>

#include "adder/device/device.h"

namespace adder::device {

bool built_with_cuda() {
  return true;
}
int cuda_device_count() {
  return c10::cuda::device_count();
}
std::string name(at::Device device) {
  return device.is_cuda() ? at::cuda::getDeviceProperties(device.index())->name : "CPU";
}
void synchronize(at::Device device) {
  if (!device.is_cuda()) return;
  const c10::cuda::CUDAGuard guard(device);
  c10::cuda::device_synchronize();
}
Memory memory(at::Device device) {
  if (!device.is_cuda()) return {};
  at::globalContext().lazyInitDevice(at::kCUDA);
  const c10::cuda::CUDAGuard guard(device);
  Memory out;
  // The allocator's figures are indexed by kind; the first is the sum of all.
  out.peak = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak;
  size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  out.free = static_cast<int64_t>(free);
  out.total = static_cast<int64_t>(total);
  return out;
}
void reset_peak_memory(at::Device device) {
  if (device.is_cuda()) c10::cuda::CUDACachingAllocator::resetPeakStats(device.index());
}

double exponentials_per_second(at::Device device) {
  if (!device.is_cuda()) return 0;
  int processors = 0, kilohertz = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device.index()));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, device.index()));
  return 16e3 * static_cast<double>(processors) * static_cast<double>(kilohertz);
}

at::Tensor to_device(const at::Tensor& tensor, at::Device device) {
  return tensor.defined() ? tensor.to(device, /*non_blocking=*/true) : tensor;
}
at::Tensor pinned(const at::Tensor& tensor, at::Device device) {
  return tensor.defined() && device.is_cuda() ? tensor.pin_memory() : tensor;
}

struct Stopwatch::Events {
  at::Device device;
  at::cuda::CUDAEvent begin{cudaEventDefault}, end{cudaEventDefault};
  std::chrono::steady_clock::time_point host_begin, host_end;
};
Stopwatch::Stopwatch(at::Device device) : events_(std::make_unique<Events>(device)) {}
Stopwatch::~Stopwatch() = default;
void Stopwatch::start() {
  if (events_->device.is_cuda())
    events_->begin.record(c10::cuda::getCurrentCUDAStream(events_->device.index()));
  else
    events_->host_begin = std::chrono::steady_clock::now();
}
void Stopwatch::stop() {
  if (events_->device.is_cuda())
    events_->end.record(c10::cuda::getCurrentCUDAStream(events_->device.index()));
  else
    events_->host_end = std::chrono::steady_clock::now();
}
double Stopwatch::milliseconds() {
  if (!events_->device.is_cuda())
    return std::chrono::duration<double, std::milli>(events_->host_end - events_->host_begin).count();
  events_->end.synchronize();
  return events_->begin.elapsed_time(events_->end);
}

struct Readback::Slots {
  at::Device device;
  at::Tensor values;  // (slots, ...), pinned
  std::vector<at::cuda::CUDAEvent> events;
  int64_t first = 0, pending = 0;
};
Readback::Readback(const at::Tensor& like, int64_t slots) : slots_(std::make_unique<Slots>(like.device())) {
  const at::TensorOptions options = like.options().device(at::kCPU).pinned_memory(like.is_cuda());
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes.insert(sizes.begin(), slots);
  slots_->values = at::empty(sizes, options);
  slots_->events.resize(slots);
}
// What is queued writes to the slots, which other threads may be given as soon as they are free.
Readback::~Readback() {
  if (!slots_->device.is_cuda() || slots_->pending == 0) return;
  const int64_t last = (slots_->first + slots_->pending - 1) % slots();
  if (cudaEventSynchronize(slots_->events[last].event()) != cudaSuccess) cudaGetLastError();
}
int64_t Readback::pending() const {
  return slots_->pending;
}
int64_t Readback::slots() const {
  return slots_->values.size(0);
}
void Readback::push(const at::Tensor& values) {
  slots_->values[(slots_->first + slots_->pending) % slots()].copy_(values, /*non_blocking=*/true);
  pushed();
}
const at::Tensor& Readback::memory() const {
  return slots_->values;
}
void Readback::pushed() {
  TORCH_CHECK(slots_->pending < slots(), "Readback: all slots are pending");
  const int64_t slot = (slots_->first + slots_->pending++) % slots();
  if (slots_->device.is_cuda()) slots_->events[slot].record(c10::cuda::getCurrentCUDAStream(slots_->device.index()));
}
bool Readback::ready() const {
  return slots_->pending > 0 && slots_->events[slots_->first].query();
}
at::Tensor Readback::pop() {
  const int64_t slot = slots_->first;
  slots_->events[slot].synchronize();
  slots_->first = (slot + 1) % slots();
  --slots_->pending;
  return slots_->values[slot].clone();
}

struct Graph::Recorded {
  at::Device device;
  c10::cuda::CUDAStream stream;
  at::cuda::CUDAGraph graph;
};
Graph::Graph(at::Device device)
    : recorded_(std::make_unique<Recorded>(device, c10::cuda::getStreamFromPool(false, device.index()))) {}
Graph::~Graph() = default;

void Graph::record(const std::function<void()>& warm_up, const std::function<void()>& body) {
  const c10::cuda::CUDAGuard guard(recorded_->device);
  synchronize(recorded_->device);
  {
    const c10::cuda::CUDAStreamGuard on(recorded_->stream);
    for (int i = 0; i < 2; ++i) warm_up();
    synchronize(recorded_->device);
    c10::cuda::CUDACachingAllocator::emptyCache();
    // Relaxed: other threads may go on taking pinned memory meanwhile.
    recorded_->graph.capture_begin({0, 0}, cudaStreamCaptureModeRelaxed);
    try {
      body();
    } catch (...) {
      try {
        recorded_->graph.capture_end();
      } catch (...) {  // the first error is the one to tell
      }
      throw;
    }
    recorded_->graph.capture_end();
  }
  synchronize(recorded_->device);
}

void Graph::replay() {
  recorded_->graph.replay();
}

}  // namespace adder::device
