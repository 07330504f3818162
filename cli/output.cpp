#include "cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "adder/core/check.h"

namespace adder::cli {

void flush_output() {
  ADDER_CHECK(std::fflush(stdout) == 0 && std::ferror(stdout) == 0, "cannot write the output: {}",
              std::strerror(errno));
}

}  // namespace adder::cli
