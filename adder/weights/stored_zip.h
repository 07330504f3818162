#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace adder::weights {

// A file of a zip archive that lies there as it is, uncompressed.
struct StoredEntry {
  std::span<const std::byte> data;
  int64_t position = 0;  // of the data, in bytes from the start of the archive
  uint32_t crc = 0;      // 0: not known
};

// A zip archive in memory, which must outlive it.
class StoredZip {
 public:
  StoredZip(std::span<const std::byte> bytes, const std::string& path);

  static bool is_zip(std::span<const std::byte> bytes);

  // The name of the first entry; empty where there is none.
  const std::string& first_name() const { return first_name_; }
  bool contains(const std::string& name) const { return places_.contains(name); }
  // A view of the bytes. Throws where there is no such entry, or it is compressed or encrypted or not within them.
  StoredEntry entry(const std::string& name) const;

 private:
  class Reader;

  std::span<const std::byte> bytes_;
  std::string path_, first_name_;
  std::map<std::string, uint64_t> places_;  // in the archive's directory, by name
};

// Whether the data agree with the sum that the archive has for them; true where it has none.
bool crc_agrees(const StoredEntry& entry);

}  // namespace adder::weights
