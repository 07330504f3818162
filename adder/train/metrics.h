#pragma once

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace adder::train {

// metrics.jsonl of a run: one JSON object a line, each with its "step".
class MetricsFile {
 public:
  // Opens for appending; lines of steps beyond `last_step` are removed (a run that resumes writes them again), with the
  // whole file replaced atomically.
  MetricsFile(const std::filesystem::path& path, int64_t last_step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  void write(const nlohmann::ordered_json& line);

 private:
  std::filesystem::path path_;
  int file_;
};

// "1h02m", "3m05s", "12s".
std::string duration_text(double seconds);

// The progress line of a run on stderr: rewritten in place on a terminal, a line every ten seconds elsewhere.
class Progress {
 public:
  Progress(int64_t first_step, int64_t steps);
  void update(int64_t step, double loss, double lr, double tokens_per_second);
  // Ends the line, so that something else can be printed.
  void interrupt();

 private:
  int64_t first_step_, steps_;
  bool terminal_, open_ = false;
  std::chrono::steady_clock::time_point begin_, last_;
};

}  // namespace adder::train
