#include "adder/weights/stored_zip.h"

#include <zip.h>
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <string_view>

#include "adder/core/check.h"
#include "adder/weights/safetensors_header.h"

namespace adder::weights {
namespace {

// The bytes as libzip reads them, and where it did last.
struct Reader {
  std::span<const std::byte> bytes;
  uint64_t at = 0;
  uint64_t last_read = 0;
  zip_error_t error;
};

zip_int64_t serve(void* state, void* data, zip_uint64_t length, zip_source_cmd_t command) {
  Reader& reader = *static_cast<Reader*>(state);
  switch (command) {
    case ZIP_SOURCE_SUPPORTS:
      return zip_source_make_command_bitmap(ZIP_SOURCE_OPEN, ZIP_SOURCE_READ, ZIP_SOURCE_CLOSE, ZIP_SOURCE_STAT,
                                            ZIP_SOURCE_ERROR, ZIP_SOURCE_FREE, ZIP_SOURCE_SEEK, ZIP_SOURCE_TELL,
                                            ZIP_SOURCE_SUPPORTS, -1);
    case ZIP_SOURCE_OPEN:
      reader.at = 0;
      return 0;
    case ZIP_SOURCE_READ: {
      const uint64_t count = std::min<uint64_t>(length, reader.bytes.size() - reader.at);
      if (count > 0) std::memcpy(data, reader.bytes.data() + reader.at, count);
      reader.last_read = reader.at;
      reader.at += count;
      return static_cast<zip_int64_t>(count);
    }
    case ZIP_SOURCE_SEEK: {
      const zip_int64_t to =
          zip_source_seek_compute_offset(reader.at, reader.bytes.size(), data, length, &reader.error);
      if (to < 0) return -1;
      reader.at = static_cast<uint64_t>(to);
      return 0;
    }
    case ZIP_SOURCE_TELL:
      return static_cast<zip_int64_t>(reader.at);
    case ZIP_SOURCE_STAT: {
      zip_stat_t* stat = static_cast<zip_stat_t*>(data);
      zip_stat_init(stat);
      stat->size = reader.bytes.size();
      stat->valid |= ZIP_STAT_SIZE;
      return sizeof(*stat);
    }
    case ZIP_SOURCE_ERROR:
      return zip_error_to_data(&reader.error, data, length);
    case ZIP_SOURCE_CLOSE:
    case ZIP_SOURCE_FREE:
      return 0;
    default:
      zip_error_set(&reader.error, ZIP_ER_OPNOTSUPP, 0);
      return -1;
  }
}

}  // namespace

struct StoredZip::Library {
  Reader reader;
  zip_t* archive = nullptr;

  ~Library() {
    if (archive) zip_discard(archive);
    zip_error_fini(&reader.error);
  }
};

StoredZip::StoredZip(std::span<const std::byte> bytes, const std::string& path)
    : library_(std::make_unique<Library>()), bytes_(bytes), path_(path) {
  library_->reader.bytes = bytes;
  zip_error_init(&library_->reader.error);
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* source = zip_source_function_create(serve, &library_->reader, &error);
  if (source) library_->archive = zip_open_from_source(source, ZIP_RDONLY, &error);
  if (source && !library_->archive) zip_source_free(source);
  const std::string reason = zip_error_strerror(&error);
  zip_error_fini(&error);
  ADDER_CHECK(library_->archive, "{}: the zip archive cannot be read: {}: is the file cut off?", path, reason);
}

StoredZip::~StoredZip() = default;

bool StoredZip::is_zip(std::span<const std::byte> bytes) {
  constexpr std::string_view kMagic = "PK\x03\x04";
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

std::string StoredZip::first_name() const {
  const char* name = zip_get_name(library_->archive, 0, ZIP_FL_ENC_RAW);
  return name ? name : "";
}

bool StoredZip::contains(const std::string& name) const {
  return zip_name_locate(library_->archive, name.c_str(), ZIP_FL_ENC_RAW) >= 0;
}

StoredEntry StoredZip::entry(const std::string& name) const {
  const std::string where = fmt::format("{}: {}", path_, shown_name(name));
  zip_t* archive = library_->archive;
  const zip_int64_t index = zip_name_locate(archive, name.c_str(), ZIP_FL_ENC_RAW);
  ADDER_CHECK(index >= 0, "{}: the zip archive has no such entry", where);
  zip_stat_t stat;
  ADDER_CHECK(zip_stat_index(archive, static_cast<zip_uint64_t>(index), 0, &stat) == 0, "{}: {}", where,
              zip_strerror(archive));
  constexpr zip_uint64_t kNeeded =
      ZIP_STAT_SIZE | ZIP_STAT_COMP_SIZE | ZIP_STAT_COMP_METHOD | ZIP_STAT_ENCRYPTION_METHOD | ZIP_STAT_CRC;
  ADDER_CHECK((stat.valid & kNeeded) == kNeeded, "{}: the zip archive does not say how it is stored", where);
  ADDER_CHECK(stat.comp_method == ZIP_CM_STORE && stat.comp_size == stat.size && stat.encryption_method == ZIP_EM_NONE,
              "{}: must be stored as it is (torch.save compresses nothing), but is compressed or encrypted", where);
  StoredEntry found{{}, 0, stat.crc};
  if (stat.size == 0) return found;

  // libzip tells no offsets, and with them a tensor can be a view of the file: so it reads a byte here and is watched.
  // The sums it would check while reading are checked by crc_agrees.
  zip_file_t* file = zip_fopen_index(archive, static_cast<zip_uint64_t>(index), ZIP_FL_COMPRESSED);
  ADDER_CHECK(file, "{}: {}", where, zip_strerror(archive));
  char byte = 0;
  const zip_int64_t count = zip_fread(file, &byte, 1);
  zip_fclose(file);
  const uint64_t position = library_->reader.last_read;
  ADDER_CHECK(count == 1 && position <= bytes_.size() && stat.size <= bytes_.size() - position,
              "{}: its {} bytes end beyond the file, which has {}: is it cut off?", where, stat.size, bytes_.size());
  found.data = bytes_.subspan(position, stat.size);
  found.position = static_cast<int64_t>(position);
  return found;
}

bool crc_agrees(const StoredEntry& entry) {
  // 0 is what torch.save writes where it is told to leave the sums out.
  if (entry.crc == 0) return true;
  const auto* data = reinterpret_cast<const Bytef*>(entry.data.data());
  return crc32_z(crc32_z(0, nullptr, 0), data, entry.data.size()) == entry.crc;
}

}  // namespace adder::weights
