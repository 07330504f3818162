#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace adder::data {

// A hash map of 64-bit keys in one array, at most half full. kNoKey is no key.
template <typename Value>
class FlatMap {
 public:
  static constexpr uint64_t kNoKey = ~uint64_t{0};

  FlatMap() : slots_(16) {}

  const Value* find(uint64_t key) const {
    for (size_t at = first_slot(key);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].key == key) return &slots_[at].value;
      if (slots_[at].key == kNoKey) return nullptr;
    }
  }

  // The key's value, and whether it is there only now.
  std::pair<Value*, bool> insert(uint64_t key, const Value& value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    size_t at = first_slot(key);
    while (slots_[at].key != kNoKey && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    const bool is_new = slots_[at].key == kNoKey;
    if (is_new) {
      slots_[at] = {key, value};
      ++size_;
    }
    return {&slots_[at].value, is_new};
  }

  size_t size() const { return size_; }

 private:
  struct Slot {
    uint64_t key = kNoKey;
    Value value{};
  };

  size_t first_slot(uint64_t key) const {
    const uint64_t mixed = (key ^ key >> 32) * 0x9E3779B97F4A7C15u;
    return (mixed ^ mixed >> 32) & (slots_.size() - 1);
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    size_ = 0;
    for (const Slot& slot : old)
      if (slot.key != kNoKey) insert(slot.key, slot.value);
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

}  // namespace adder::data
