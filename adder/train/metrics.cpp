#include "adder/train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "adder/core/check.h"
#include "adder/core/files.h"

namespace adder::train {

MetricsFile::MetricsFile(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  std::string kept;
  bool dropped = false;
  if (std::ifstream in(path); in) {
    for (std::string line; std::getline(in, line);) {
      const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
      // Lines that a kill cut short are dropped as well.
      const bool whole = json.is_object() && json.contains("step") && json["step"].is_number_integer() && !in.eof();
      if (whole && json["step"].get<int64_t>() <= last_step)
        kept += line + "\n";
      else
        dropped = true;
    }
  }
  if (dropped) core::write_file_atomically(path, kept);
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  ADDER_CHECK(file_ >= 0, "cannot open '{}': {}", path.string(), std::strerror(errno));
}

MetricsFile::~MetricsFile() {
  ::close(file_);
}

void MetricsFile::write(const nlohmann::ordered_json& line) {
  const std::string text = line.dump() + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(file_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    ADDER_CHECK(count > 0, "cannot write '{}': {}", path_.string(), std::strerror(errno));
    done += static_cast<size_t>(count);
  }
}

std::string duration_text(double seconds) {
  const int64_t whole = std::lround(seconds);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

Progress::Progress(int64_t first_step, int64_t steps)
    : first_step_(first_step),
      steps_(steps),
      terminal_(::isatty(STDERR_FILENO) == 1),
      begin_(std::chrono::steady_clock::now()),
      last_() {}

void Progress::update(int64_t step, double loss, double lr, double tokens_per_second) {
  const auto now = std::chrono::steady_clock::now();
  const auto pause = terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000);
  if (step < steps_ && now - last_ < pause) return;
  last_ = now;
  const double spent = std::chrono::duration<double>(now - begin_).count();
  const double left =
      spent / static_cast<double>(std::max<int64_t>(1, step - first_step_)) * static_cast<double>(steps_ - step);
  const std::string text = fmt::format("step {}/{}  loss {:.4f}  lr {:.2e}  {:.0f} tokens/s  {} left", step, steps_,
                                       loss, lr, tokens_per_second, duration_text(left));
  std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
  std::fflush(stderr);
  open_ = terminal_;
}

void Progress::interrupt() {
  if (open_) std::fputc('\n', stderr);
  open_ = false;
}

}  // namespace adder::train
