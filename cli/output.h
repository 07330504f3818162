#pragma once

namespace adder::cli {

// Sends on its way what was printed. Throws where standard output does not take it: a full disk, a closed stream.
void flush_output();

}  // namespace adder::cli
