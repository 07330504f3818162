#include "adder/data/text.h"

#include "adder/core/check.h"
#include "adder/data/compressed_file.h"

namespace adder::data {

Text read_text(const std::vector<std::filesystem::path>& paths, std::string_view separator) {
  ADDER_CHECK(!paths.empty(), "text: at least one file is needed, got none");
  Text text;
  for (const auto& path : paths) {
    const auto begin = static_cast<int64_t>(text.bytes.size());
    text.files.push_back({path, begin});
    text.documents.push_back(begin);
    if (begin == 0) {
      text.bytes = read_file(path);
    } else {
      text.bytes += read_file(path);
    }
    if (separator.empty()) continue;
    const std::string_view all = text.bytes;
    for (size_t at = static_cast<size_t>(begin); (at = all.find(separator, at)) != all.npos;) {
      at += separator.size();
      if (at < all.size()) text.documents.push_back(static_cast<int64_t>(at));
    }
  }
  return text;
}

}  // namespace adder::data
