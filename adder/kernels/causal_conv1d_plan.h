#pragma once

#include <algorithm>
#include <vector>

#include "adder/kernels/causal_conv1d.h"
#include "adder/kernels/selective_scan_plan.h"

namespace adder::kernels {

// How the CPU convolution divides its work: channels into blocks, sequences into pieces, consecutive pieces into slabs;
// an item of work is a slab of a block. It depends on the shape alone, so that the sums over steps have the same order
// for any number of threads.
struct ConvPlan {
  static constexpr int64_t kUnit = 16;             // a multiple of every vector width
  static constexpr int64_t kBlockChannels = 1024;  // at most; long rows are what memory delivers best
  static constexpr int64_t kChunk = 8;             // steps at a time within a piece

  struct Piece {
    int64_t sequence, begin, end;  // steps, counted in the direction of time
  };
  std::vector<Piece> pieces;        // at least one of every sequence, also of an empty one
  std::vector<int64_t> slab_first;  // (slabs + 1) into pieces
  int64_t blocks, block_channels, longest_piece;

  ConvPlan(const SequenceLayout& layout, int64_t channels, int64_t width) {
    const int64_t widest = std::clamp<int64_t>(8192 / width / kUnit * kUnit, 4 * kUnit, kBlockChannels);
    blocks = (channels + widest - 1) / widest;
    block_channels = blocks > 0 ? ((channels + blocks - 1) / blocks + kUnit - 1) / kUnit * kUnit : 0;
    // A piece reads up to K - 1 rows on either side of it, a sequence as many of its windows.
    const int64_t around = width - 1;
    int64_t cost = 0;
    for (int64_t s = 0; s < layout.sequences; ++s) cost += ScanPlan::sequence_length(layout, s) + around;
    const int64_t least = std::max<int64_t>(64, 4 * around);
    const int64_t slab_cost = std::max<int64_t>(least, (cost + 63) / 64);
    longest_piece = std::min(slab_cost, std::max<int64_t>(1024, least));
    int64_t filled = slab_cost;
    for (int64_t s = 0; s < layout.sequences; ++s) {
      const int64_t length = ScanPlan::sequence_length(layout, s);
      int64_t begin = 0;
      do {
        const int64_t end = std::min(length, begin + longest_piece);
        if (filled >= slab_cost) {
          slab_first.push_back(static_cast<int64_t>(pieces.size()));
          filled = 0;
        }
        pieces.push_back({s, begin, end});
        filled += end - begin + around;
        begin = end;
      } while (begin < length);
    }
    slab_first.push_back(static_cast<int64_t>(pieces.size()));
  }

  int64_t slabs() const { return static_cast<int64_t>(slab_first.size()) - 1; }
};

}  // namespace adder::kernels
