#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "adder/core/check.h"
#include "adder/weights/checkpoint_folder.h"
#include "adder/weights/checkpoint_format.h"

namespace adder::weights {
namespace fs = std::filesystem;
using namespace checkpoint;
namespace {

constexpr std::string_view kStepPrefix = "step-";
constexpr const char* kBestName = "best";

}  // namespace

std::string checkpoint_name(int64_t step) {
  ADDER_CHECK(step >= 0, "a checkpoint's step must be at least 0, got {}", step);
  return fmt::format("{}{:08}", kStepPrefix, step);
}

std::vector<NumberedCheckpoint> list_checkpoints(const fs::path& run_folder) {
  check_folder(run_folder);
  std::vector<NumberedCheckpoint> result;
  std::error_code error;
  for (fs::directory_iterator it(run_folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (!name.starts_with(kStepPrefix)) continue;
    int64_t step = -1;
    std::from_chars(name.data() + kStepPrefix.size(), name.data() + name.size(), step);
    if (step >= 0 && name == checkpoint_name(step) && kind_of(it->path()) == fs::file_type::directory) {
      result.push_back({step, it->path()});
    }
  }
  ADDER_CHECK(!error, "cannot list '{}': {}", run_folder.string(), error.message());
  std::ranges::sort(result, {}, &NumberedCheckpoint::step);
  return result;
}

std::optional<FoundCheckpoint> latest_checkpoint(const fs::path& run_folder) {
  std::vector<NumberedCheckpoint> numbered = list_checkpoints(run_folder);
  if (numbered.empty()) return std::nullopt;
  std::vector<std::string> damaged;
  for (; !numbered.empty(); numbered.pop_back()) {
    try {
      return FoundCheckpoint{CheckpointFolder(numbered.back().path), damaged};
    } catch (const NewerFormat&) {
      throw;  // going on from an older checkpoint would write over what the newer program trained
    } catch (const Error& error) {
      damaged.push_back(error.what());
    }
  }
  fail("{}: none of its {} checkpoints can be opened:\n  {}", run_folder.string(), damaged.size(),
       fmt::join(damaged, "\n  "));
}

FoundCheckpoint resolve_checkpoint(const fs::path& path, Which which) {
  check_folder(path);
  if (kind_of(path / kDocument) != fs::file_type::not_found) return {CheckpointFolder(path), {}};
  if (which == Which::kBest) {
    ADDER_CHECK(kind_of(path / kBestName) != fs::file_type::not_found, "{}: has no checkpoint '{}'", path.string(),
                kBestName);
    return {CheckpointFolder(path / kBestName), {}};
  }
  std::optional<FoundCheckpoint> latest = latest_checkpoint(path);
  ADDER_CHECK(latest,
              "{}: is neither an Adder checkpoint (a folder with {}) nor a run with checkpoints (folders such as {})",
              path.string(), kDocument, checkpoint_name(1000));
  return std::move(*latest);
}

}  // namespace adder::weights
