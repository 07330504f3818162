#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace adder::core {

// A whole regular file mapped read-only (it may be empty). The file must not shrink while it is mapped: replace files
// by renaming.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// Writes a file from its start, unbuffered; errors name `shown`, the byte position and the system's reason.
class FileWriter {
 public:
  FileWriter(const std::filesystem::path& path, const std::filesystem::path& shown);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  // Brings everything to the disk and closes; without it the destructor closes and promises nothing.
  void finish();

 private:
  int file_;
  int64_t written_ = 0;
  std::string shown_;
};

// A file on its way to its name: written as a temporary beside it, gone with this object unless published. For several
// files that belong together; write_file_atomically does one.
class PendingFile {
 public:
  explicit PendingFile(const std::filesystem::path& path);
  ~PendingFile();
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  FileWriter& writer() { return writer_; }
  // Brings all to the disk. What can fail for want of space fails here or before.
  void finish() { writer_.finish(); }
  // After finish(): creates or replaces the file.
  void publish();

 private:
  std::filesystem::path path_, temporary_;
  FileWriter writer_;
};

// Creates or replaces a regular file at once: `fill` writes a temporary beside it, which is synced and renamed. When
// `fill` throws or the disk is full, the old file is untouched and the temporary is gone.
void write_file_atomically(const std::filesystem::path& path, const std::function<void(FileWriter&)>& fill);
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

// Gives a file, whose content is on the disk, another name in the same file system, in place of a file that has it.
void rename_file(const std::filesystem::path& from, const std::filesystem::path& to);

// Creates or replaces a folder at once: `fill` gets a new folder beside it to put files into; all of them are synced
// before it is renamed. A process killed on the way leaves the old folder or the new one, after clean_leftovers(parent)
// under its own name.
void write_folder_atomically(const std::filesystem::path& path,
                             const std::function<void(const std::filesystem::path&)>& fill);

// Removes a folder so that a process killed on the way leaves it whole or, under its own name, not at all.
void remove_folder_atomically(const std::filesystem::path& path);

// Removes what killed writers left in `parent`, and gives a folder its name back that was put aside and never replaced.
// Nobody may be writing there: call it right after taking the FolderLock.
void clean_leftovers(const std::filesystem::path& parent);

// Holds an existing folder for one run, through a lock on its file `.lock`; the kernel lets go when the process ends,
// however it ends. Throws "<folder>: in use by another run (pid N)".
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int file_;
};

}  // namespace adder::core
