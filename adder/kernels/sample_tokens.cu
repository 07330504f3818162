#include "adder/kernels/sample_tokens.h"

#include "adder/kernels/cuda_launch.cuh"
#include "adder/kernels/token_keys.cuh"

namespace adder::kernels::cuda {
namespace {

constexpr int kWarps = 32, kThreads = 32 * kWarps;
constexpr float kUnit = 1099511627776.0f;  // 2^40
constexpr int kBins = 256, kDigits = 4;    // a key is looked for by its digits, the first one first

using Count = unsigned long long;

struct Shared {
  Count bins[kBins];
  Count of_warp[kWarps];
  Count before;  // what precedes the bin that was looked for
  int bin;
  unsigned long long best;
  int faults;
  int token;
};

// A block looks at one row. Each warp has a run of neighbouring tokens, so that tokens are met by id within a warp.
class Row {
 public:
  __device__ Row(const SampleTokens& p, Shared& shared, int64_t row)
      : p_(p),
        s_(shared),
        logits_(p.logits + row * p.vocab),
        seen_(p.repetition_penalty == 1 ? nullptr : p.seen + row * p.vocab),
        penalty_(static_cast<float>(p.repetition_penalty)),
        lane_(static_cast<int>(threadIdx.x) % 32),
        warp_(static_cast<int>(threadIdx.x) / 32),
        vocab_(static_cast<int>(p.vocab)) {
    const int run = ((vocab_ + kWarps - 1) / kWarps + 31) / 32 * 32;
    begin_ = min(warp_ * run, vocab_);
    end_ = min(begin_ + run, vocab_);
  }

  __device__ int64_t choose(double place) {
    const int64_t fault = find_first();
    if (fault != 0) return fault;
    if (p_.temperature == 0) return first_;
    largest_ = value(first_);
    // Within what a float can be: of an infinity times 0 nothing could be chosen.
    scale_ = static_cast<float>(fmin(fmax(1.4426950408889634 / p_.temperature, 1.2e-38), 3.4e38));
    if (p_.top_k > 0 && p_.top_k < vocab_) keep_up_to(static_cast<Count>(p_.top_k), false);
    if (p_.top_p < 1) {
      const auto all = static_cast<double>(total());
      keep_up_to(max(static_cast<Count>(ceil(p_.top_p * all)), Count{1}), true);
    }
    return draw(place);
  }

 private:
  __device__ __forceinline__ float value(int token) const { return penalised(token, logits_[token]); }
  __device__ __forceinline__ float penalised(int token, float x) const {
    if (seen_ == nullptr || seen_[token] == 0) return x;
    return x > 0 ? x / penalty_ : x * penalty_;
  }
  __device__ __forceinline__ Count mass(float x) const {
    if (x == -__int_as_float(0x7F800000)) return 0;
    const float p = exp2f((x - largest_) * scale_);
    return p < least_ ? 0 : static_cast<Count>(p * kUnit);
  }

  // The first of the largest.
  __device__ int64_t find_first() {
    if (threadIdx.x == 0) s_.best = 0, s_.faults = 0;
    __syncthreads();
    unsigned long long best = 0;
    bool fault = false;
    const auto look_at = [&](int i, float x) {
      fault |= !(x < __int_as_float(0x7F800000));
      const unsigned long long both = key_of(x, i);
      best = both > best ? both : best;
    };
    if (vocab_ % 4 == 0 && reinterpret_cast<uintptr_t>(logits_) % 16 == 0) {
#pragma unroll 8
      for (int i = 4 * static_cast<int>(threadIdx.x); i < vocab_; i += 4 * kThreads) {
        const float4 x = *reinterpret_cast<const float4*>(logits_ + i);
        look_at(i, penalised(i, x.x)), look_at(i + 1, penalised(i + 1, x.y));
        look_at(i + 2, penalised(i + 2, x.z)), look_at(i + 3, penalised(i + 3, x.w));
      }
    } else {
      for (int i = static_cast<int>(threadIdx.x); i < vocab_; i += kThreads) look_at(i, value(i));
    }
    for (int step = 16; step > 0; step /= 2) {
      const unsigned long long other = __shfl_xor_sync(kAllLanes, best, step);
      best = other > best ? other : best;
    }
    if (lane_ == 0) atomicMax(&s_.best, best);
    if (fault) s_.faults = 1;
    __syncthreads();
    if (s_.faults != 0) return kNotFinite;
    first_ = static_cast<int>(~static_cast<unsigned>(s_.best));
    return logits_[first_] > -__int_as_float(0x7F800000) ? 0 : kNoneFinite;
  }

  // Calls visit(token, value, kept) for the warp's tokens by id, all lanes at once (token < 0: none).
  template <typename Visit>
  __device__ void for_each(const Visit& visit) const {
    Count equal = equal_before_;
    for (int at = begin_; at < end_; at += 32) {
      const int token = at + lane_ < end_ ? at + lane_ : -1;
      const float x = token >= 0 ? value(token) : 0.0f;
      const unsigned key = key_of(x);
      bool kept = token >= 0;
      if (cut_) {
        const bool same = kept && key == cut_key_;
        const unsigned all = __ballot_sync(kAllLanes, same);
        const Count earlier = equal + __popc(all & ((1u << lane_) - 1));
        kept = kept && (key > cut_key_ || (same && earlier < cut_equal_));
        equal += __popc(all);
      }
      visit(token, x, kept);
    }
  }

  __device__ __forceinline__ Count sum_of_warp(Count x) const {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
    return x;
  }
  // The sum over the block of what lanes have; of_warp: each warp's.
  __device__ Count sum_of_block(Count x) {
    x = sum_of_warp(x);
    __syncthreads();
    if (lane_ == 0) s_.of_warp[warp_] = x;
    __syncthreads();
    Count sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += s_.of_warp[w];
    return sum;
  }
  __device__ Count total() {
    Count sum = 0;
    for_each([&](int, float x, bool kept) { sum += kept ? mass(x) : 0; });
    return sum_of_block(sum);
  }

  // Of what is kept, from the largest down, by id among equals: only as many as it takes for their count, or mass, to
  // reach `enough`.
  __device__ void keep_up_to(Count enough, bool by_mass) {
    unsigned prefix = 0;
    Count before = 0;
    for (int digit = kDigits - 1; digit >= 0; --digit) {
      for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kThreads) s_.bins[i] = 0;
      __syncthreads();
      const int shift = 8 * digit;
      for_each([&](int, float x, bool kept) {
        const unsigned key = key_of(x);
        if (!kept || (digit < kDigits - 1 && key >> (shift + 8) != prefix)) return;
        const Count one = by_mass ? mass(x) : 1;
        if (one > 0) atomicAdd(&s_.bins[key >> shift & 255], one);
      });
      __syncthreads();
      if (threadIdx.x == 0) {
        Count sum = before;
        int bin = kBins - 1, last = -1;
        for (; bin >= 0; --bin) {
          if (s_.bins[bin] > 0) last = bin;
          if (sum + s_.bins[bin] >= enough) break;
          sum += s_.bins[bin];
        }
        // Fewer than enough: all stay.
        if (bin < 0) sum -= last >= 0 ? s_.bins[last] : 0, bin = last >= 0 ? last : 0;
        s_.bin = bin, s_.before = sum;
      }
      __syncthreads();
      before = s_.before;
      prefix = prefix << 8 | static_cast<unsigned>(s_.bin);
      __syncthreads();
    }
    const unsigned bits = (prefix & 0x80000000u) != 0 ? prefix & 0x7FFFFFFFu : ~prefix;
    const Count each = by_mass ? max(mass(__uint_as_float(bits)), Count{1}) : 1;
    Count equal = enough > before ? (enough - before + each - 1) / each : 1;
    if (cut_ && prefix == cut_key_) equal = min(equal, cut_equal_);
    cut_ = true, cut_key_ = prefix, cut_equal_ = equal;
    // How many equals the warps before have.
    Count mine = 0;
    for (int at = begin_ + lane_; at < end_; at += 32) mine += key_of(value(at)) == cut_key_;
    sum_of_block(mine);
    equal_before_ = 0;
    for (int w = 0; w < warp_; ++w) equal_before_ += s_.of_warp[w];
    __syncthreads();
  }

  __device__ int64_t draw(double place) {
    least_ = static_cast<float>(p_.min_p);
    if (threadIdx.x == 0) s_.token = first_;
    const Count all = total();
    const auto wanted = min(static_cast<Count>(place * static_cast<double>(all)), all - 1);
    Count before = 0;
    for (int w = 0; w < warp_; ++w) before += s_.of_warp[w];
    if (wanted >= before && wanted < before + s_.of_warp[warp_]) {
      Count sum = before;
      for_each([&](int token, float x, bool kept) {
        const Count own = kept ? mass(x) : 0;
        Count upto = own;
        for (int step = 1; step < 32; step *= 2) {
          const Count other = __shfl_up_sync(kAllLanes, upto, step);
          upto += lane_ >= step ? other : 0;
        }
        const Count end = sum + upto;
        if (own > 0 && wanted < end && wanted >= end - own) s_.token = token;
        sum += __shfl_sync(kAllLanes, upto, 31);
      });
    }
    __syncthreads();
    return s_.token;
  }

  const SampleTokens& p_;
  Shared& s_;
  const float* logits_;
  const uint8_t* seen_;
  float penalty_, largest_ = 0, scale_ = 0, least_ = 0;
  int lane_, warp_, vocab_, begin_, end_, first_ = 0;
  bool cut_ = false;
  unsigned cut_key_ = 0;
  Count cut_equal_ = 0, equal_before_ = 0;
};

__global__ void __launch_bounds__(kThreads) sample(const SampleTokens p) {
  __shared__ Shared shared;
  const int64_t row = blockIdx.x;
  const int64_t token = Row(p, shared, row).choose(p.temperature == 0 ? 0.0 : p.places[row]);
  __syncthreads();
  if (threadIdx.x != 0) return;
  p.tokens[row] = token;
  put_copy(p.copies, p.rows, row, token);
  if (p.seen != nullptr && token >= 0) p.seen[row * p.vocab + token] = 1;
}

}  // namespace

void sample_tokens(const SampleTokens& p, CudaStream stream) {
  if (p.rows == 0) return;
  sample<<<static_cast<unsigned>(p.rows), kThreads, 0, stream>>>(p);
  check_launch("sample_tokens");
}

}  // namespace adder::kernels::cuda
