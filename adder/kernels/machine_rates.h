#pragma once

#include <cstdint>

// What the processor reaches at most in the two things that bound these kernels, measured on the spot; benchmarks give
// their figures as shares of it.
namespace adder::kernels::cpu {

// Exponentials a second (the scan's own exp2, float32, from registers).
double exponentials_per_second(int64_t threads);

// Bytes a second that plain reads of a large array bring in.
double read_bytes_per_second(int64_t threads);

}  // namespace adder::kernels::cpu
