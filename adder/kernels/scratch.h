#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace adder::kernels {

// A 64-byte aligned buffer that belongs to the calling thread and lives until it asks for a larger one.
inline std::byte* thread_scratch(size_t bytes) {
  struct Buffer {
    std::byte* data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffer;
  if (bytes > buffer.size) {
    std::free(buffer.data);
    buffer.size = (bytes + 63) / 64 * 64;
    buffer.data = static_cast<std::byte*>(std::aligned_alloc(64, buffer.size));
    if (buffer.data == nullptr) {
      buffer.size = 0;
      throw std::bad_alloc();
    }
  }
  return buffer.data;
}

// Hands out pieces of one buffer, each aligned to 64 bytes; with a null base it only counts.
template <typename R>
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}
  R* take(int64_t count) {
    R* piece = base_ != nullptr ? reinterpret_cast<R*>(base_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(R) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace adder::kernels
