#pragma once

namespace adder::core {

// Has the process keep the memory that it frees, in large pages where the system lends them on request. Large tensors
// come and go at each step; by default each goes back to the system and comes again page by page, zeroed, which costs a
// scan over 50 MB as much time as its arithmetic. For programs that train or serve; to be called at the start of
// main().
void keep_freed_memory();

}  // namespace adder::core
