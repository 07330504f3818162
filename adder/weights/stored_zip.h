#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace adder::weights {

// A file of a zip archive that lies there as it is, uncompressed.
struct StoredEntry {
  std::span<const std::byte> data;
  int64_t position = 0;  // of the data, in bytes from the start of the archive
  uint32_t crc = 0;      // 0: not known
};

// A zip archive in memory, which must outlive it. For one thread at a time.
class StoredZip {
 public:
  StoredZip(std::span<const std::byte> bytes, const std::string& path);
  ~StoredZip();
  StoredZip(const StoredZip&) = delete;
  StoredZip& operator=(const StoredZip&) = delete;

  static bool is_zip(std::span<const std::byte> bytes);

  // The name of the first entry; empty where there is none.
  std::string first_name() const;
  bool contains(const std::string& name) const;
  // A view of the bytes. Throws where there is no such entry, or it is compressed or encrypted or not within them.
  StoredEntry entry(const std::string& name) const;

 private:
  struct Library;
  std::unique_ptr<Library> library_;
  std::span<const std::byte> bytes_;
  std::string path_;
};

// Whether the data agree with the sum that the archive has for them; true where it has none.
bool crc_agrees(const StoredEntry& entry);

}  // namespace adder::weights
