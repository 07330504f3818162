#pragma once

#include <algorithm>
#include <vector>

#include "adder/kernels/selective_scan.h"

namespace adder::kernels {

// How the CPU scan divides its work. It depends on the shape alone, so that sums have the same order for any number of
// threads.
struct ScanPlan {
  static constexpr int64_t kUnit = kScanUnit;
  static constexpr int64_t kBlockUnits = 16;  // units in a block, the smallest piece of work, at most

  int64_t group_channels, group_units, block_units, group_blocks, blocks, units;
  int64_t planes;                     // real numbers in a state of a channel: N, or 2 N
  int64_t slabs;                      // sequences are dealt to this many slabs; sums over sequences go slab by slab
  std::vector<int64_t> chunk_offset;  // (S + 1) first chunk of each sequence in border_states

  ScanPlan(const SequenceLayout& layout, int64_t channels, int64_t state, int64_t groups, bool complex) {
    group_channels = channels / groups;
    group_units = (group_channels + kUnit - 1) / kUnit;
    // Wide blocks read memory fastest; where channels are few, narrow ones give every thread work.
    block_units = std::clamp<int64_t>(group_units * groups * layout.sequences / 16, 1, kBlockUnits);
    group_blocks = (group_units + block_units - 1) / block_units;
    block_units = group_blocks > 0 ? (group_units + group_blocks - 1) / group_blocks : 1;
    blocks = groups * group_blocks;
    units = groups * group_units;
    planes = complex ? 2 * state : state;
    slabs = std::min<int64_t>(layout.sequences, 64);
    chunk_offset.assign(layout.sequences + 1, 0);
    for (int64_t s = 0; s < layout.sequences; ++s)
      chunk_offset[s + 1] = chunk_offset[s] + (sequence_length(layout, s) + kScanChunk - 1) / kScanChunk;
  }

  // So few states, a decoding step of a small model, are done before other threads have woken up; on a busy machine the
  // wait for them takes milliseconds.
  int64_t useful_threads(const SequenceLayout& layout, int64_t threads) const {
    const int64_t states = layout.batch * layout.length * units * kUnit * planes;
    return states < 32768 ? 1 : threads;
  }

  static int64_t sequence_begin(const SequenceLayout& layout, int64_t s) {
    return layout.cu_seqlens != nullptr ? layout.cu_seqlens[s] : 0;
  }
  static int64_t sequence_length(const SequenceLayout& layout, int64_t s) {
    return layout.cu_seqlens != nullptr ? layout.cu_seqlens[s + 1] - layout.cu_seqlens[s] : layout.length;
  }
};

// One sequence's place in the batch, walked in the direction of time.
struct SequenceRows {
  int64_t b, first, step, length;

  SequenceRows(const SequenceLayout& layout, int64_t s) {
    b = layout.cu_seqlens != nullptr ? 0 : s;
    length = ScanPlan::sequence_length(layout, s);
    const int64_t begin = ScanPlan::sequence_begin(layout, s);
    first = layout.reverse ? begin + length - 1 : begin;
    step = layout.reverse ? -1 : 1;
  }
  int64_t time(int64_t j) const { return first + step * j; }
};

}  // namespace adder::kernels
