#include "adder/data/compressed_file.h"

#include <lzma.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "adder/core/check.h"

namespace adder::data {
namespace {

constexpr size_t kInputBytes = size_t{1} << 18;
constexpr size_t kOutputBytes = size_t{1} << 20;

class Input {
 public:
  explicit Input(const std::filesystem::path& path)
      : path_(path), file_(std::fopen(path.c_str(), "rb"), &std::fclose), chunk_(kInputBytes) {
    ADDER_CHECK(file_, "cannot open '{}': {}", path.string(), std::strerror(errno));
  }

  // The next bytes of the file into `chunk()`; 0 at its end.
  size_t read() {
    begin_ += size_;
    size_ = std::fread(chunk_.data(), 1, chunk_.size(), file_.get());
    ADDER_CHECK(!std::ferror(file_.get()), "cannot read '{}' at byte {}: {}", path_.string(), begin_ + size_,
                std::strerror(errno));
    return size_;
  }

  uint8_t* chunk() { return chunk_.data(); }
  // Where the byte `inside` of the chunk lies in the file.
  size_t position(size_t inside) const { return begin_ + inside; }

  [[noreturn]] void truncated() const {
    fail("{}: ends too early, after byte {}: the compressed data is not complete", path_.string(), begin_ + size_);
  }
  [[noreturn]] void corrupt(size_t inside, const char* format, const char* reason) const {
    fail("{}: not valid {} data at byte {}: {}", path_.string(), format, position(inside), reason);
  }

 private:
  std::filesystem::path path_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
  std::vector<uint8_t> chunk_;
  size_t begin_ = 0;
  size_t size_ = 0;
};

// The decoders write into its free end; full, it goes to the reader of the text.
class Output {
 public:
  explicit Output(const std::function<void(std::string_view)>& take) : take_(take), piece_(kOutputBytes) {}

  char* free_bytes() {
    if (used_ == piece_.size()) flush();
    return piece_.data() + used_;
  }
  size_t free_count() const { return piece_.size() - used_; }
  void advance(size_t count) { used_ += count; }
  void flush() {
    if (used_ > 0) take_({piece_.data(), used_});
    any_ = any_ || used_ > 0;
    used_ = 0;
  }
  bool any() const { return any_; }

 private:
  const std::function<void(std::string_view)>& take_;
  std::vector<char> piece_;
  size_t used_ = 0;
  bool any_ = false;
};

void copy_plain(Input& input, Output& output) {
  while (size_t count = input.read()) {
    for (size_t done = 0; done < count;) {
      char* to = output.free_bytes();
      const size_t part = std::min(count - done, output.free_count());
      std::memcpy(to, input.chunk() + done, part);
      output.advance(part);
      done += part;
    }
  }
}

const char* lzma_reason(lzma_ret code) {
  switch (code) {
    case LZMA_FORMAT_ERROR:
      return "wrong magic number";
    case LZMA_OPTIONS_ERROR:
      return "unknown option of the format";
    case LZMA_DATA_ERROR:
      return "the data or its check is damaged";
    case LZMA_MEM_ERROR:
      return "not enough memory";
    default:
      return "the decoder cannot go on";
  }
}

void decompress_xz(Input& input, Output& output) {
  lzma_stream stream = LZMA_STREAM_INIT;
  const std::unique_ptr<lzma_stream, void (*)(lzma_stream*)> guard(&stream, &lzma_end);
  ADDER_CHECK(lzma_stream_decoder(&stream, UINT64_MAX, LZMA_CONCATENATED) == LZMA_OK,
              "the xz decoder could not be started");
  lzma_action action = LZMA_RUN;
  for (;;) {
    if (stream.avail_in == 0 && action == LZMA_RUN) {
      stream.avail_in = input.read();
      stream.next_in = input.chunk();
      if (stream.avail_in == 0) action = LZMA_FINISH;
    }
    stream.next_out = reinterpret_cast<uint8_t*>(output.free_bytes());
    stream.avail_out = output.free_count();
    const size_t room = stream.avail_out;
    const lzma_ret code = lzma_code(&stream, action);
    output.advance(room - stream.avail_out);
    if (code == LZMA_STREAM_END) return;
    if (code == LZMA_BUF_ERROR && action == LZMA_FINISH) input.truncated();
    if (code != LZMA_OK) input.corrupt(static_cast<size_t>(stream.next_in - input.chunk()), "xz", lzma_reason(code));
  }
}

void decompress_gzip(Input& input, Output& output) {
  z_stream stream = {};
  constexpr int kGzipOnly = 15 + 16;
  ADDER_CHECK(inflateInit2(&stream, kGzipOnly) == Z_OK, "the gzip decoder could not be started");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> guard(&stream, &inflateEnd);
  bool between_members = false;
  for (;;) {
    if (stream.avail_in == 0) {
      stream.avail_in = static_cast<uInt>(input.read());
      stream.next_in = input.chunk();
      if (stream.avail_in == 0) {
        if (between_members) return;
        input.truncated();
      }
    }
    if (between_members) {
      inflateReset(&stream);
      between_members = false;
    }
    stream.next_out = reinterpret_cast<Bytef*>(output.free_bytes());
    const auto room = static_cast<uInt>(std::min<size_t>(output.free_count(), UINT32_MAX));
    stream.avail_out = room;
    const int code = inflate(&stream, Z_NO_FLUSH);
    output.advance(room - stream.avail_out);
    if (code == Z_STREAM_END) {
      between_members = true;
    } else if (code != Z_OK && code != Z_BUF_ERROR) {  // Z_BUF_ERROR: this input gave no output yet
      input.corrupt(static_cast<size_t>(stream.next_in - input.chunk()), "gzip",
                    stream.msg ? stream.msg : "the decoder cannot go on");
    }
  }
}

void decompress_zstd(Input& input, Output& output) {
  const std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream(ZSTD_createDStream(), &ZSTD_freeDStream);
  ADDER_CHECK(stream, "the zstd decoder could not be started");
  ZSTD_DCtx_setParameter(stream.get(), ZSTD_d_windowLogMax, 31);
  bool frame_is_complete = false;
  while (const size_t count = input.read()) {
    ZSTD_inBuffer in{input.chunk(), count, 0};
    bool output_was_full = false;
    while (in.pos < in.size || output_was_full) {
      char* to = output.free_bytes();
      ZSTD_outBuffer out{to, output.free_count(), 0};
      const size_t code = ZSTD_decompressStream(stream.get(), &out, &in);
      output.advance(out.pos);
      if (ZSTD_isError(code)) input.corrupt(in.pos, "zstd", ZSTD_getErrorName(code));
      frame_is_complete = code == 0;
      output_was_full = out.pos == out.size && !frame_is_complete;
    }
  }
  if (!frame_is_complete) input.truncated();
}

}  // namespace

void read_file(const std::filesystem::path& path, const std::function<void(std::string_view piece)>& take) {
  Input input(path);
  Output output(take);
  const auto suffix = path.extension();
  if (suffix == ".xz") {
    decompress_xz(input, output);
  } else if (suffix == ".gz") {
    decompress_gzip(input, output);
  } else if (suffix == ".zst") {
    decompress_zstd(input, output);
  } else {
    copy_plain(input, output);
  }
  output.flush();
  ADDER_CHECK(output.any(), "{}: holds no data, at least one byte is needed", path.string());
}

std::string read_file(const std::filesystem::path& path) {
  std::string text;
  read_file(path, [&text](std::string_view piece) { text.append(piece); });
  return text;
}

}  // namespace adder::data
