#include "adder/weights/stored_zip.h"

#include <zlib.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>

#include "adder/core/check.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {

static_assert(std::endian::native == std::endian::little, "zip archives are little-endian");

// The parts of an archive: their first four bytes, and their size without names and comments.
constexpr std::string_view kLocal = "PK\x03\x04", kCentral = "PK\x01\x02", kEnd = "PK\x05\x06", kEnd64 = "PK\x06\x06",
                           kLocator64 = "PK\x06\x07";
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22, kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr uint64_t kMaxComment = 0xffff;

// What stands in a field of 32 bits whose value is in the entry's extra field, as in archives beyond 4 GB.
constexpr uint32_t kElsewhere = 0xffffffff;
constexpr uint16_t kWideSizes = 1, kEncrypted = 1;

}  // namespace

// Reads numbers at places that it checks.
class StoredZip::Reader {
 public:
  Reader(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  [[noreturn]] void bad(const std::string& reason) const {
    fail("{}: the zip archive cannot be read: {}: is the file cut off?", path_, reason);
  }

  std::string_view text(uint64_t at, uint64_t length) const {
    if (at > bytes_.size() || length > bytes_.size() - at)
      bad(fmt::format("{} bytes at byte {} are wanted, but the file has {}", length, at, bytes_.size()));
    return {reinterpret_cast<const char*>(bytes_.data()) + at, length};
  }

  template <typename T>
  T number(uint64_t at) const {
    T value;
    std::memcpy(&value, text(at, sizeof(T)).data(), sizeof(T));
    return value;
  }

  // A part of the archive that must begin so.
  void expect(std::string_view magic, uint64_t at, uint64_t length, const char* what) const {
    if (!text(at, length).starts_with(magic)) bad(fmt::format("{} must be at byte {}", what, at));
  }

  // Where the end record is: it is the last thing but for a comment.
  uint64_t end_record() const {
    for (uint64_t from_end = kEndBytes; from_end <= std::min<uint64_t>(bytes_.size(), kEndBytes + kMaxComment);
         ++from_end) {
      const uint64_t at = bytes_.size() - from_end;
      if (text(at, kEnd.size()) == kEnd && number<uint16_t>(at + 20) == from_end - kEndBytes) return at;
    }
    bad("its end record is missing");
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& path_;
};

StoredZip::StoredZip(std::span<const std::byte> bytes, const std::string& path) : bytes_(bytes), path_(path) {
  const Reader reader(bytes, path);
  const uint64_t end = reader.end_record();
  uint64_t count = reader.number<uint16_t>(end + 10), at = reader.number<uint32_t>(end + 16);
  if (end >= kLocator64Bytes && reader.text(end - kLocator64Bytes, 4) == kLocator64) {
    const auto wide = reader.number<uint64_t>(end - kLocator64Bytes + 8);
    reader.expect(kEnd64, wide, kEnd64Bytes, "its end record of 64 bits");
    count = reader.number<uint64_t>(wide + 32), at = reader.number<uint64_t>(wide + 48);
  }
  for (uint64_t i = 0; i < count; ++i) {
    reader.expect(kCentral, at, kCentralBytes, "an entry of its directory");
    const auto name = reader.number<uint16_t>(at + 28), extra = reader.number<uint16_t>(at + 30);
    const auto comment = reader.number<uint16_t>(at + 32);
    const std::string named(reader.text(at + kCentralBytes, name));
    if (i == 0) first_name_ = named;
    if (!places_.emplace(named, at).second) reader.bad(shown_name(named) + " is in it twice");
    at += kCentralBytes + name + extra + comment;
  }
}

bool StoredZip::is_zip(std::span<const std::byte> bytes) {
  return bytes.size() >= kLocal.size() && std::memcmp(bytes.data(), kLocal.data(), kLocal.size()) == 0;
}

StoredEntry StoredZip::entry(const std::string& name) const {
  const std::string where = fmt::format("{}: {}", path_, shown_name(name));
  const auto found = places_.find(name);
  ADDER_CHECK(found != places_.end(), "{}: the zip archive has no such entry", where);
  const Reader reader(bytes_, path_);
  const uint64_t at = found->second;
  const auto flags = reader.number<uint16_t>(at + 8), method = reader.number<uint16_t>(at + 10);
  const auto crc = reader.number<uint32_t>(at + 16);
  uint64_t stored = reader.number<uint32_t>(at + 20), size = reader.number<uint32_t>(at + 24);
  uint64_t header = reader.number<uint32_t>(at + 42);

  // Fields of an id, a length and so many bytes; the one of wide sizes has those that are elsewhere, in this order.
  uint64_t field = at + kCentralBytes + reader.number<uint16_t>(at + 28);
  const uint64_t fields_end = field + reader.number<uint16_t>(at + 30);
  while (field + 4 <= fields_end && reader.number<uint16_t>(field) != kWideSizes)
    field += 4 + uint64_t{reader.number<uint16_t>(field + 2)};
  uint64_t wide = field + 4;
  for (uint64_t* value : {&size, &stored, &header}) {
    if (*value != kElsewhere) continue;
    ADDER_CHECK(wide + 8 <= fields_end, "{}: the zip archive does not say how large it is", where);
    *value = reader.number<uint64_t>(wide);
    wide += 8;
  }
  ADDER_CHECK(method == 0 && stored == size && (flags & kEncrypted) == 0,
              "{}: must be stored as it is (torch.save compresses nothing), but is compressed or encrypted", where);

  reader.expect(kLocal, header, kLocalBytes, "a header of an entry");
  const uint64_t start =
      header + kLocalBytes + reader.number<uint16_t>(header + 26) + reader.number<uint16_t>(header + 28);
  ADDER_CHECK(start <= bytes_.size() && size <= bytes_.size() - start,
              "{}: its {} bytes end beyond the file, which has {}: is it cut off?", where, size, bytes_.size());
  return {bytes_.subspan(start, size), static_cast<int64_t>(start), crc};
}

bool crc_agrees(const StoredEntry& entry) {
  // 0 is what torch.save writes where it is told to leave the sums out.
  if (entry.crc == 0) return true;
  const auto* data = reinterpret_cast<const Bytef*>(entry.data.data());
  return crc32_z(crc32_z(0, nullptr, 0), data, entry.data.size()) == entry.crc;
}

}  // namespace adder::weights
