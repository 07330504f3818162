#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "adder/core/error.h"
#include "adder/weights/safetensors.h"

// Checkpoints: folders of safetensors files and one checkpoint.json with a hash of everything (docs/checkpoints.md).
namespace adder::weights {

// Tensors of any device and strides, with their names.
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// A checkpoint of a version that this program does not know.
class NewerFormat : public Error {
 public:
  using Error::Error;
};

// One file of a checkpoint.
struct CheckpointFile {
  std::string name;      // "model.safetensors": letters, digits, '.', '-' and '_', ending so
  NamedTensors tensors;  // in the order in which they are read back
};

// What write_checkpoint_folder() writes.
struct CheckpointContent {
  std::vector<CheckpointFile> files;  // names differ
  // The caller's object. Its numbers must be finite: JSON has no others.
  nlohmann::ordered_json state = nlohmann::ordered_json::object();
};

// Creates or replaces a checkpoint at once (core::write_folder_atomically). When it throws, a checkpoint that stood
// there before still does.
void write_checkpoint_folder(const std::filesystem::path& path, const CheckpointContent& content);

// What opening reads: the hash of each file, or also that of each tensor by itself. The first covers all bytes.
enum class Verify { kFiles, kFilesAndTensors };
// Views of the mapped file must only be read; copies may be changed.
enum class Access { kCopy, kMapped };

// An Adder checkpoint, verified in whole when opened. Errors name the file and what is wrong: foreign, written by a
// newer version, cut off, damaged and in which tensors.
class CheckpointFolder {
 public:
  // Throws adder::Error where the checkpoint is not whole.
  explicit CheckpointFolder(const std::filesystem::path& path, Verify verify = Verify::kFiles);

  const std::filesystem::path& path() const { return path_; }              // the folder
  const std::string& adder_version() const { return adder_version_; }      // that wrote it
  const nlohmann::ordered_json& state() const { return state_; }           // CheckpointContent::state
  bool has(std::string_view file) const { return find(file) != nullptr; }  // whether it has a file of this name

  // On the CPU, in the order in which they were given to the writer.
  NamedTensors tensors(std::string_view file, Access access = Access::kCopy) const;

 private:
  struct File {
    std::string name;
    std::vector<std::string> tensors;
    SafetensorsFile contents;
  };

  const File* find(std::string_view file) const;

  std::filesystem::path path_;
  std::string adder_version_;
  nlohmann::ordered_json state_;
  std::vector<File> files_;
};

// A checkpoint of a run, by its name.
struct NumberedCheckpoint {
  int64_t step;                // optimizer steps done
  std::filesystem::path path;  // of the folder
};

// The name of a run's checkpoint after this many steps: "step-00001000".
std::string checkpoint_name(int64_t step);

// The numbered checkpoints of a run folder by rising step, unopened; everything else in it is left out.
std::vector<NumberedCheckpoint> list_checkpoints(const std::filesystem::path& run_folder);

// A checkpoint that opened, and those that did not.
struct FoundCheckpoint {
  CheckpointFolder checkpoint;       // the one to use
  std::vector<std::string> damaged;  // why each newer one could not be opened, the newest first
};

// The newest numbered checkpoint that opens; nothing where there are none. Throws where there are some but none opens.
std::optional<FoundCheckpoint> latest_checkpoint(const std::filesystem::path& run_folder);

// Which checkpoint of a run: the newest that is whole, or the one of the lowest evaluation loss.
enum class Which { kLatest, kBest };

// The checkpoint that a user means by a path: a checkpoint folder itself, or a run folder's latest or its "best".
FoundCheckpoint resolve_checkpoint(const std::filesystem::path& path, Which which = Which::kLatest);

}  // namespace adder::weights
