#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

// Pieces of checkpoints, made by hand.
namespace adder::weights {

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

inline std::string pickled(const std::string& body) {
  return "\x80\x02" + body + ".";
}

inline std::string text_op(std::string_view text) {
  return "X" + raw(static_cast<uint32_t>(text.size())) + std::string(text);
}

inline std::string integer_op(int64_t value) {
  return "\x8a\x08" + raw(value);
}

inline std::string tuple_op(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (const int64_t value : values) out += integer_op(value);
  return out + "t";
}

inline std::string storage_op(const std::string& type, std::string_view key, int64_t count) {
  return "(" + text_op("storage") + "ctorch\n" + type + "\n" + text_op(key) + text_op("cpu") + integer_op(count) + "tQ";
}

struct View {
  int64_t offset = 0;
  std::vector<int64_t> sizes, strides;
};

inline std::string tensor_op(const std::string& storage, const View& view, const std::string& function = "_v2",
                             const std::string& last = "") {
  return "ctorch._utils\n_rebuild_tensor" + function + "\n(" + storage + integer_op(view.offset) +
         tuple_op(view.sizes) + tuple_op(view.strides) + "\x89}" + last + "tR";
}

// A zip archive of uncompressed entries, as torch.save writes it where it is told to leave the sums out.
inline std::string stored_zip(const std::vector<std::pair<std::string, std::string>>& entries, uint16_t method = 0) {
  std::string out, directory;
  for (const auto& [name, data] : entries) {
    const uint32_t size = static_cast<uint32_t>(data.size()), at = static_cast<uint32_t>(out.size());
    const std::string common = raw<uint16_t>(20) + raw<uint16_t>(0) + raw(method) + raw<uint32_t>(0) +
                               raw<uint32_t>(0) + raw(size) + raw(size) + raw(static_cast<uint16_t>(name.size())) +
                               raw<uint16_t>(0);
    out += "PK\x03\x04" + common + name + data;
    directory += "PK\x01\x02" + raw<uint16_t>(20) + common + std::string(10, '\0') + raw(at) + name;
  }
  const uint16_t count = static_cast<uint16_t>(entries.size());
  const uint32_t at = static_cast<uint32_t>(out.size()), size = static_cast<uint32_t>(directory.size());
  return out + directory + "PK\x05\x06" + std::string(4, '\0') + raw(count) + raw(count) + raw(size) + raw(at) +
         std::string(2, '\0');
}

}  // namespace adder::weights
