#include "adder/core/process.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace adder::core {
namespace {

// The program's file; empty where a loader or an emulator was given it, which would take the arguments for its own.
std::filesystem::path own_executable(const char* name) {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  return !error && name != nullptr && program.filename() == std::filesystem::path(name).filename()
             ? program
             : std::filesystem::path();
}

}  // namespace

void tune_process(char** argv) {
#ifdef __GLIBC__
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);  // never
#endif
  if (std::getenv("GOMP_SPINCOUNT") != nullptr || std::getenv("OMP_WAIT_POLICY") != nullptr) return;
  const std::filesystem::path program = own_executable(argv[0]);
  if (program.empty()) return;
  setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/0);
  execv(program.c_str(), argv);  // returns only where it fails; then the default stays
}

}  // namespace adder::core
