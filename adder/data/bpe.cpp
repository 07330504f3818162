#include "adder/data/bpe.h"

#include <algorithm>
#include <limits>

#include "adder/core/check.h"

namespace adder::data {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
// Up to here looking at all pairs for each merge is faster than keeping them in order.
constexpr size_t kShortWord = 64;

}  // namespace

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, const std::vector<Rule>& rules) : byte_ids_(byte_ids) {
  for (size_t i = 0; i < rules.size(); ++i)
    merges_.insert(pair_key(rules[i].left, rules[i].right), {static_cast<uint32_t>(i), rules[i].merged});
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int64_t>& out) const {
  if (word.size() <= kShortWord) return encode_short(word, out);
  encode_long(word, scratch, out);
}

void Bpe::encode_short(std::string_view word, std::vector<int64_t>& out) const {
  std::array<int32_t, kShortWord> ids;
  std::array<uint32_t, kShortWord> ranks;  // of the pair that begins here
  std::array<int32_t, kShortWord> merged;
  size_t count = word.size();
  const auto look_up = [&](size_t i) {
    const Merge* merge = i + 1 < count ? find(ids[i], ids[i + 1]) : nullptr;
    ranks[i] = merge ? merge->rank : kNoRank;
    if (merge) merged[i] = merge->merged;
  };
  for (size_t i = 0; i < count; ++i) ids[i] = byte_ids_[static_cast<uint8_t>(word[i])];
  for (size_t i = 0; i < count; ++i) look_up(i);
  while (count > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < count; ++i)
      if (ranks[i] < ranks[best]) best = i;
    if (ranks[best] == kNoRank) break;
    ids[best] = merged[best];
    --count;
    for (size_t i = best + 1; i < count; ++i) {
      ids[i] = ids[i + 1];
      ranks[i] = ranks[i + 1];
      merged[i] = merged[i + 1];
    }
    look_up(best);
    if (best > 0) look_up(best - 1);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count));
}

void Bpe::encode_long(std::string_view word, Scratch& scratch, std::vector<int64_t>& out) const {
  auto& symbols = scratch.symbols_;
  auto& heap = scratch.heap_;
  ADDER_CHECK(word.size() <= std::numeric_limits<int32_t>::max(), "a word must have less than 2 GiB, got {} bytes",
              word.size());
  const auto size = static_cast<int32_t>(word.size());
  symbols.resize(word.size());
  heap.clear();
  const auto later = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate_at = [&](int32_t i) {
    const int32_t next = symbols[i].next;
    if (next < 0) return false;
    const Merge* merge = find(symbols[i].id, symbols[next].id);
    if (merge) heap.push_back({merge->rank, i, symbols[i].id, symbols[next].id});
    return merge != nullptr;
  };
  for (int32_t i = 0; i < size; ++i)
    symbols[i] = {byte_ids_[static_cast<uint8_t>(word[i])], i - 1, i + 1 < size ? i + 1 : -1};
  for (int32_t i = 0; i < size; ++i) candidate_at(i);
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[best.position];
    if (left.id != best.left || left.next < 0 || symbols[left.next].id != best.right) continue;  // merged meanwhile
    Scratch::Symbol& right = symbols[left.next];
    left.id = find(best.left, best.right)->merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (candidate_at(best.position)) std::push_heap(heap.begin(), heap.end(), later);
    if (left.previous >= 0 && candidate_at(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) out.push_back(symbols[i].id);
  // One text that is a single word must not hold its memory for ever.
  if (symbols.capacity() > (size_t{1} << 20)) scratch = {};
}

}  // namespace adder::data
