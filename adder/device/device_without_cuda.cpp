#include <chrono>
#include <deque>

#include "adder/core/check.h"
#include "adder/device/device.h"

// The CPU alone.
namespace adder::device {

bool built_with_cuda() {
  return false;
}
int cuda_device_count() {
  return 0;
}
std::string name(at::Device) {
  return "CPU";
}
void synchronize(at::Device) {}
Memory memory(at::Device) {
  return {};
}
void reset_peak_memory(at::Device) {}
double exponentials_per_second(at::Device) {
  return 0;
}

at::Tensor to_device(const at::Tensor& tensor, at::Device) {
  return tensor;
}
at::Tensor pinned(const at::Tensor& tensor, at::Device) {
  return tensor;
}

struct Stopwatch::Events {
  std::chrono::steady_clock::time_point begin, end;
};
Stopwatch::Stopwatch(at::Device) : events_(std::make_unique<Events>()) {}
Stopwatch::~Stopwatch() = default;
void Stopwatch::start() {
  events_->begin = std::chrono::steady_clock::now();
}
void Stopwatch::stop() {
  events_->end = std::chrono::steady_clock::now();
}
double Stopwatch::milliseconds() {
  return std::chrono::duration<double, std::milli>(events_->end - events_->begin).count();
}

struct Readback::Slots {
  std::deque<at::Tensor> values;
  int64_t count;
};
Readback::Readback(const at::Tensor&, int64_t slots) : slots_(std::make_unique<Slots>()) {
  slots_->count = slots;
}
Readback::~Readback() = default;
int64_t Readback::pending() const {
  return static_cast<int64_t>(slots_->values.size());
}
int64_t Readback::slots() const {
  return slots_->count;
}
void Readback::push(const at::Tensor& values) {
  slots_->values.push_back(values.clone());
}
const at::Tensor& Readback::memory() const {
  fail("memory that a GPU writes to needs CUDA, which this build has not");
}
void Readback::pushed() {}
bool Readback::ready() const {
  return !slots_->values.empty();
}
at::Tensor Readback::pop() {
  const at::Tensor values = slots_->values.front();
  slots_->values.pop_front();
  return values;
}

struct Graph::Recorded {};
Graph::Graph(at::Device) {
  fail("graphs need CUDA, which this build has not");
}
Graph::~Graph() = default;
void Graph::record(const std::function<void()>&, const std::function<void()>&) {}
void Graph::replay() {}

}  // namespace adder::device
