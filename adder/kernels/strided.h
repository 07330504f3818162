#pragma once

#include <cstdint>

namespace adder::kernels {

// Views with element strides; a stride of 0 broadcasts, a negative one walks backwards.
template <typename T>
struct View1 {
  T* data = nullptr;
  int64_t d = 0;  // stride
};

template <typename T>
struct View2 {  // (D, N) or (B, L)
  T* data = nullptr;
  int64_t row = 0, column = 0;
};

template <typename T>
struct View3 {  // (B, L, D)
  T* data = nullptr;
  int64_t b = 0, l = 0, d = 0;
};

template <typename T>
struct View4 {  // (B, L, G, N)
  T* data = nullptr;
  int64_t b = 0, l = 0, g = 0, n = 0;
};

}  // namespace adder::kernels
