#include "adder/data/stream_decoder.h"

#include "adder/data/unicode.h"

namespace adder::data {

std::string StreamDecoder::push(int64_t id) {
  if (!skip_special_ || !tokenizer_->is_special(id)) held_ += tokenizer_->bytes(id);
  std::string text;
  held_.erase(0, append_lossy(held_, text));
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  if (!held_.empty()) append_utf8(kReplacement, text);
  held_.clear();
  return text;
}

}  // namespace adder::data
