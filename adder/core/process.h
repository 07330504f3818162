#pragma once

namespace adder::core {

// For a program that trains or serves, at the start of main(): settings of the process without which it loses much of
// its speed, each left alone where the environment has it already.
//
// Freed memory is kept. Large tensors come and go at each step; by default each goes back to the system and comes again
// page by page, zeroed, which costs a scan over 50 MB as much time as its arithmetic.
//
// A thread that waits for another gives its processor away after about 0.1 ms (GOMP_SPINCOUNT). By default it holds it
// for milliseconds: beside any other load, the thread that it waits for does not get to run. OpenMP reads this before
// main(), so the program starts itself once more, with the same arguments.
void tune_process(char** argv);

}  // namespace adder::core
