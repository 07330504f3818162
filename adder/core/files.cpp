#include "adder/core/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <optional>
#include <random>
#include <system_error>
#include <utility>
#include <vector>

#include "adder/core/check.h"

namespace adder::core {
namespace fs = std::filesystem;
namespace {

// Names of leftovers: ".<name><mark><16 hex digits>".
constexpr std::string_view kTemporaryMark = ".tmp-";
constexpr std::string_view kAsideMark = ".old-";
constexpr size_t kSuffixDigits = 16;

[[noreturn]] void fail_with(int error, std::string_view action, const fs::path& path) {
  fail("cannot {} '{}': {}", action, path.string(), std::generic_category().message(error));
}

// An open file descriptor, closed at the end of its scope.
class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags, std::string_view action) {
    do file_ = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
    while (file_ < 0 && errno == EINTR);
    if (file_ < 0) fail_with(errno, action, path);
  }
  ~Descriptor() {
    if (file_ >= 0) ::close(file_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return file_; }
  int release() { return std::exchange(file_, -1); }

 private:
  int file_;
};

fs::path parent_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

fs::path beside(const fs::path& path, std::string_view mark) {
  const std::string name = path.filename().string();
  ADDER_CHECK(!name.empty() && name != "." && name != "..", "'{}': must end in the name of a file or folder",
              path.string());
  std::random_device random;
  const uint64_t suffix = (static_cast<uint64_t>(random()) << 32) | random();
  return parent_of(path) / fmt::format(".{}{}{:016x}", name, mark, suffix);
}

// The name that a leftover with this mark was made for; nothing for any other file.
std::optional<std::string> name_of_leftover(const std::string& file, std::string_view mark) {
  const size_t tail = mark.size() + kSuffixDigits;
  if (file.size() < tail + 2 || file[0] != '.') return std::nullopt;
  const size_t at = file.size() - tail;
  if (file.compare(at, mark.size(), mark) != 0) return std::nullopt;
  if (file.find_first_not_of("0123456789abcdef", at + mark.size()) != std::string::npos) return std::nullopt;
  return file.substr(1, at - 1);
}

void sync_path(const fs::path& path, bool folder) {
  const Descriptor file(path, O_RDONLY | (folder ? O_DIRECTORY : 0), "open for syncing");
  if (::fsync(file.get()) == 0) return;
  // Some network file systems cannot sync folders and say so this way.
  if (folder && errno == EINVAL) return;
  fail_with(errno, "sync", path);
}

void sync_tree(const fs::path& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const fs::file_status status = it->symlink_status();
    if (fs::is_regular_file(status)) sync_path(it->path(), false);
    if (fs::is_directory(status)) sync_path(it->path(), true);
  }
  if (error) fail_with(error.value(), "list", folder);
  sync_path(folder, true);
}

void rename_path(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail("cannot rename '{}' to '{}': {}", from.string(), to.string(), std::generic_category().message(errno));
  }
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_with(error.value(), "remove", path);
}

// The kind of what stands at `path`, or not_found; a link counts as what it points to.
fs::file_type kind_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::none) fail_with(error.value(), "look at", path);
  return status.type();
}

const fs::path& regular_or_new(const fs::path& path) {
  const fs::file_type kind = kind_of(path);
  ADDER_CHECK(kind == fs::file_type::not_found || kind == fs::file_type::regular, "cannot write '{}': it is {}",
              path.string(), kind == fs::file_type::directory ? "a folder" : "not a regular file");
  return path;
}

}  // namespace

MappedFile::MappedFile(const fs::path& path) {
  const Descriptor file(path, O_RDONLY, "open");
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) fail_with(errno, "look at", path);
  ADDER_CHECK(S_ISREG(status.st_mode), "cannot read '{}': it is {}", path.string(),
              S_ISDIR(status.st_mode) ? "a folder" : "not a regular file");
  if (status.st_size == 0) return;
  const size_t size = static_cast<size_t>(status.st_size);
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (start == MAP_FAILED) fail_with(errno, "map", path);
  bytes_ = {static_cast<const std::byte*>(start), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

FileWriter::FileWriter(const fs::path& path, const fs::path& shown) : shown_(shown.string()) {
  do file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  while (file_ < 0 && errno == EINTR);
  if (file_ < 0) fail_with(errno, "create", shown);
}

FileWriter::~FileWriter() {
  if (file_ >= 0) ::close(file_);
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(file_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      fail("cannot write '{}' at byte {}: {}", shown_, written_, std::generic_category().message(errno));
    }
    ADDER_CHECK(count > 0, "cannot write '{}' at byte {}: the system took nothing", shown_, written_);
    bytes = bytes.subspan(static_cast<size_t>(count));
    written_ += count;
  }
}

void FileWriter::write(std::string_view text) {
  write(std::as_bytes(std::span(text.data(), text.size())));
}

void FileWriter::finish() {
  if (::fsync(file_) != 0) fail_with(errno, "sync", shown_);
  if (::close(std::exchange(file_, -1)) != 0) fail_with(errno, "close", shown_);
}

PendingFile::PendingFile(const fs::path& path)
    : path_(regular_or_new(path)), temporary_(beside(path, kTemporaryMark)), writer_(temporary_, path) {}

PendingFile::~PendingFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void PendingFile::publish() {
  rename_path(temporary_, path_);
  temporary_.clear();
  sync_path(parent_of(path_), true);
}

void rename_file(const fs::path& from, const fs::path& to) {
  rename_path(from, to);
  sync_path(parent_of(to), true);
}

void write_file_atomically(const fs::path& path, const std::function<void(FileWriter&)>& fill) {
  PendingFile file(path);
  fill(file.writer());
  file.finish();
  file.publish();
}

void write_file_atomically(const fs::path& path, std::string_view contents) {
  write_file_atomically(path, [&](FileWriter& out) { out.write(contents); });
}

// What a kill leaves: while filling, a temporary and the old folder; between the two renames, the old folder put aside,
// which clean_leftovers renames back; after them, the new folder and the old one as a leftover.
void write_folder_atomically(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
  const fs::path temporary = beside(path, kTemporaryMark);
  const fs::file_type kind = kind_of(path);
  ADDER_CHECK(kind == fs::file_type::not_found || kind == fs::file_type::directory,
              "cannot write '{}': it is not a folder", path.string());
  if (::mkdir(temporary.c_str(), 0777) != 0) fail_with(errno, "create", path);
  fs::path aside;
  try {
    fill(temporary);
    sync_tree(temporary);
    if (kind == fs::file_type::directory) {
      const fs::path old = beside(path, kAsideMark);
      rename_path(path, old);
      aside = old;
    }
    rename_path(temporary, path);
  } catch (...) {
    if (!aside.empty()) ::rename(aside.c_str(), path.c_str());
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
  sync_path(parent_of(path), true);
  if (!aside.empty()) remove_folder_atomically(aside);
}

void remove_folder_atomically(const fs::path& path) {
  const fs::path temporary = beside(path, kTemporaryMark);
  rename_path(path, temporary);
  sync_path(parent_of(path), true);
  remove_tree(temporary);
}

void clean_leftovers(const fs::path& parent) {
  std::error_code error;
  std::vector<std::string> files;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    files.push_back(it->path().filename().string());
  }
  if (error) fail_with(error.value(), "list", parent);
  for (const std::string& file : files) {
    if (name_of_leftover(file, kTemporaryMark)) remove_tree(parent / file);
    if (const auto name = name_of_leftover(file, kAsideMark)) {
      if (kind_of(parent / *name) == fs::file_type::not_found) {
        rename_path(parent / file, parent / *name);
      } else {
        remove_folder_atomically(parent / file);
      }
    }
  }
  sync_path(parent, true);
}

FolderLock::FolderLock(const fs::path& folder) {
  const fs::path path = folder / ".lock";
  Descriptor file(path, O_RDWR | O_CREAT, "open");
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) fail_with(errno, "lock", path);
    char text[32] = {};
    const ssize_t count = ::pread(file.get(), text, sizeof(text), 0);
    int64_t pid = 0;
    std::from_chars(text, text + std::max<ssize_t>(count, 0), pid);
    fail("{}: in use by another run (pid {})", folder.string(), pid > 0 ? std::to_string(pid) : "unknown");
  }
  const std::string pid = fmt::format("{}\n", ::getpid());
  if (::ftruncate(file.get(), 0) != 0 || ::pwrite(file.get(), pid.data(), pid.size(), 0) < 0) {
    fail_with(errno, "write", path);
  }
  file_ = file.release();
}

FolderLock::~FolderLock() {
  // The file stays: removing it would let two runs lock two files of one name.
  ::close(file_);
}

}  // namespace adder::core
