#include "adder/kernels/decode_batch.h"

#include <vector>

#include "adder/kernels/decode_batch_state.cuh"
#include "adder/kernels/product_rows.cuh"

// A layer is four kernels, of which each begins before the last has ended and asks for its weights meanwhile:
//
//   1. in_proj, its inputs the residual stream times the norm's weight, its outputs scaled by the norm; the convolution
//      and SiLU of what it found
//   2. x_proj, its inner dimension divided among the blocks of a cluster
//   3. dt_proj, softplus, the recurrence and the gate (decode_batch_state.cuh)
//   4. out_proj, divided as x_proj, added to the residual stream; the next norm's input and its sums of squares
namespace adder::kernels::cuda {
namespace {

constexpr int kMostConvWidth = 4;
// x_proj has few outputs: short slices of few rows, or it would keep few processors at work.
constexpr int kXSlices = 8, kXRows = 32, kOutSlices = 4;

// What lies between the kernels.
struct Exchange {
  float *residual, *squares;  // (rows, d_model), (rows, tiles of d_model)
  bfloat16* normed;           // (rows, d_model): not scaled yet
  bfloat16 *u, *z, *y;        // (rows, d_inner)
  bfloat16* projected;        // (rows, rank + 2 states)
};

Exchange exchange_at(void* workspace, const DecodeShape& s, int64_t* bytes) {
  auto* const from = static_cast<unsigned char*>(workspace);
  int64_t at = 0;
  const auto take = [&](auto*& array, int64_t count) {
    array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(from + at);
    at += (count * static_cast<int64_t>(sizeof(*array)) + 255) / 256 * 256;
  };
  Exchange e;
  const int64_t rows = s.rows, tiles = (s.d_model + kTileOutputs - 1) / kTileOutputs;
  take(e.residual, rows * s.d_model);
  take(e.squares, rows * tiles);
  take(e.normed, rows * s.d_model);
  take(e.u, rows * s.d_inner);
  take(e.z, rows * s.d_inner);
  take(e.y, rows * s.d_inner);
  take(e.projected, rows * (s.rank + 2 * s.states));
  *bytes = at;
  return e;
}

__device__ __forceinline__ void store_four(bfloat16* to, const float (&v)[4]) {
  Vector<bfloat16, 4> out;
#pragma unroll
  for (int k = 0; k < 4; ++k) out.value[k] = narrow<bfloat16>(v[k]);
  *reinterpret_cast<Vector<bfloat16, 4>*>(to) = out;
}

// A block a row: the residual stream begins with the embedding.
__global__ void __launch_bounds__(256) embed(const DecodeStep<bfloat16> p, const Exchange e, const float* norm_weight) {
#ifdef ADDER_HAS_WGMMA
  const int64_t row = blockIdx.x, token = p.tokens[row];
  // Whoever chose it says where there was none to choose.
  const bfloat16* const from = p.embedding + (token >= 0 && token < p.vocab ? token : 0) * p.d_model;
  const int tiles = (p.d_model + kTileOutputs - 1) / kTileOutputs, lane = static_cast<int>(threadIdx.x) % 32;
  for (int tile = static_cast<int>(threadIdx.x) / 32; tile < tiles; tile += 8) {
    const int m = tile * kTileOutputs + 2 * lane;
    float square = 0;
    if (m < p.d_model) {
      const float2 x = pair(from + m), w = *reinterpret_cast<const float2*>(norm_weight + m);
      *reinterpret_cast<float2*>(e.residual + row * p.d_model + m) = x;
      store_pair(e.normed + row * p.d_model + m, x.x * w.x, x.y * w.y);
      square = fmaf(x.x, x.x, x.y * x.y);
    }
    square = sum_lanes(square, 32);
    if (lane == 0) e.squares[row * tiles + tile] = square;
  }
#endif
}

// Of each of the block's rows, 1 / the root mean square: a warp finds those of kEach rows. The sums of squares are
// asked for before the products, and added up after them.
template <int kRows>
struct Scales {
  static constexpr int kEach = kRows / 8;

  struct Lane {
    float sum[kEach] = {};

    __device__ __forceinline__ void load(const DecodeShape& p, const Exchange& e, int first) {
      const int tiles = (p.d_model + kTileOutputs - 1) / kTileOutputs;
      const int begin = first + static_cast<int>(threadIdx.x) / 32 * kEach;
      for (int t = static_cast<int>(threadIdx.x) % 32; t < tiles; t += 32)
#pragma unroll
        for (int r = 0; r < kEach; ++r)
          if (begin + r < p.rows) sum[r] += e.squares[int64_t{begin + r} * tiles + t];
    }
  };
  float of[kRows];

  __device__ __forceinline__ void find(const Lane& lane, int d_model, float eps) {
    const int place = static_cast<int>(threadIdx.x) % 32;
    float own = 0;  // lane r has row r
#pragma unroll
    for (int r = 0; r < kEach; ++r) {
      const float all = sum_lanes(lane.sum[r], 32);
      own = place == r ? all : own;
    }
    if (place < kEach)
      of[static_cast<int>(threadIdx.x) / 32 * kEach + place] = rsqrtf(own / static_cast<float>(d_model) + eps);
  }
};

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_in(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
               const __grid_constant__ Exchange e, const __grid_constant__ DecodeLayer<bfloat16> layer) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  __shared__ Scales<kRows> scales;
  using Share = ProductShare<kRows, 1>;
  const auto place = ProductPlace::of_block<kRows, 1>();
  constexpr int kEach = Share::kEach, kPast = kMostConvWidth - 1;
  // This thread's four channels; their windows are asked for before anything else.
  const int d = place.tile * kHalfOutputs + Share::output(0), width = p.width;
  const bool is_channel = d < p.d_inner && threadIdx.x < kProductThreads;
  float window[kEach][kPast][4], weight[4][kMostConvWidth], bias[4] = {};
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int row = place.first_row + Share::row(0, i);
#pragma unroll
    for (int k = 0; k < kPast; ++k)
      if (is_channel && row < p.rows && k + 1 < width)
        load_floats(window[i][k], layer.window + (int64_t{row} * (width - 1) + k) * p.d_inner + d);
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (is_channel && width == kMostConvWidth) load_floats(weight[c], layer.conv_weight + (d + c) * kMostConvWidth);
#pragma unroll
    for (int k = 0; k < kMostConvWidth - 1; ++k)
      if (is_channel && width < kMostConvWidth && k < width) weight[c][k] = layer.conv_weight[(d + c) * width + k];
  }
  if (is_channel && layer.conv_bias != nullptr) load_floats(bias, layer.conv_bias + d);
  typename Scales<kRows>::Lane squares;
  multiply_rows<kRows, 1>(
      product, place, shared, barriers, [&] { squares.load(p, e, place.first_row); },
      [&] { scales.find(squares, p.d_model, p.eps); },
      [&](int half, int i, int r, int, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        if (row >= p.rows || d >= p.d_inner) return;
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] *= scales.of[r];
        if (half == 1) return store_four(e.z + row * p.d_inner + d, sum);
        float out[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sum[c] = widen(narrow<bfloat16>(sum[c]));
          out[c] = bias[c];
        }
        float* const to = layer.window + row * (width - 1) * p.d_inner + d;
#pragma unroll
        for (int k = 0; k < kMostConvWidth; ++k) {
          if (k >= width) break;
#pragma unroll
          for (int c = 0; c < 4; ++c)
            out[c] = fmaf(weight[c][k], k + 1 < width ? window[i][k < kPast ? k : 0][c] : sum[c], out[c]);
          if (k > 0) {
            if (k + 1 < width)
              store_floats(to + (k - 1) * p.d_inner, window[i][k < kPast ? k : 0]);
            else
              store_floats(to + (k - 1) * p.d_inner, sum);
          }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) out[c] *= sigmoid_fast(out[c]);
        store_four(e.u + row * p.d_inner + d, out);
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_x(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
              const __grid_constant__ Exchange e) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  const auto place = ProductPlace::of_block<kRows, kXSlices>();
  const int values = p.rank + 2 * p.states;
  multiply_rows<kRows, kXSlices>(
      product, place, shared, barriers, [] {}, [] {},
      [&](int, int, int r, int output, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        const int out = place.tile * kTileOutputs + output;
        if (row < p.rows && out < values) store_four(e.projected + row * values + out, sum);
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_out(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
                const __grid_constant__ Exchange e, const float* norm_weight) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  using Share = ProductShare<kRows, kOutSlices>;
  const auto place = ProductPlace::of_block<kRows, kOutSlices>();
  const int tiles = (p.d_model + kTileOutputs - 1) / kTileOutputs, m = place.tile * kTileOutputs + Share::output(0);
  float before[Share::kEach][4] = {}, weight[4] = {};
  const auto begin = [&] {
    if (m >= p.d_model) return;
    load_floats(weight, norm_weight + m);
#pragma unroll
    for (int i = 0; i < Share::kEach; ++i) {
      const int r = Share::row(place.slice, i), row = place.first_row + r;
      if (r < kRows && row < p.rows) load_floats(before[i], e.residual + int64_t{row} * p.d_model + m);
    }
  };
  multiply_rows<kRows, kOutSlices>(
      product, place, shared, barriers, begin, [] {},
      [&](int, int i, int r, int, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        float square = 0;
        if (row < p.rows && m < p.d_model) {
          float normed[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            sum[c] += before[i][c];
            square = fmaf(sum[c], sum[c], square);
            normed[c] = sum[c] * weight[c];
          }
          store_floats(e.residual + row * p.d_model + m, sum);
          store_four(e.normed + row * p.d_model + m, normed);
        }
        const unsigned lanes = __activemask();  // all of a row's
        for (int step = Share::kThreadsOfRow / 2; step > 0; step /= 2) square += __shfl_xor_sync(lanes, square, step);
        if (row < p.rows && place.tile < tiles && threadIdx.x % Share::kThreadsOfRow == 0)
          e.squares[row * tiles + place.tile] = square;
      });
#endif
}

template <int kRows>
__global__ void __launch_bounds__(kProductAllThreads, 1)
    project_head(const __grid_constant__ Product product, const __grid_constant__ DecodeStep<bfloat16> p,
                 const __grid_constant__ Exchange e) {
#ifdef ADDER_HAS_WGMMA
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ ProductBarriers<kRows> barriers;
  __shared__ Scales<kRows> scales;
  const auto place = ProductPlace::of_block<kRows, 1>();
  typename Scales<kRows>::Lane squares;
  multiply_rows<kRows, 1>(
      product, place, shared, barriers, [&] { squares.load(p, e, place.first_row); },
      [&] { scales.find(squares, p.d_model, p.eps); },
      [&](int, int, int r, int output, float(&sum)[4]) {
        const int64_t row = place.first_row + r;
        const int out = place.tile * kTileOutputs + output;
        if (row >= p.rows) return;
#pragma unroll
        for (int c = 0; c < 4; ++c) sum[c] *= scales.of[r];
        float* const to = p.logits + row * p.vocab + out;
        if (p.vocab % 4 == 0) {
          if (out < p.vocab) store_floats(to, sum);
        } else {
          for (int c = 0; c < 4 && out + c < p.vocab; ++c) to[c] = sum[c];
        }
      });
#endif
}

// (rows, columns) bfloat16, in boxes of 64 columns.
CUtensorMap map_of(const bfloat16* data, int64_t rows, int64_t columns, int box_rows) {
  static const auto encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * sizeof(bfloat16)};
  const cuuint32_t box[] = {kTileInner, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bfloat16*>(data), sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
  return map;
}

// Of 16, 32, 64 or 128 rows, the fewest that hold all; more are for several blocks.
template <typename F>
void with_rows(int rows, const F& f) {
  if (rows <= 16)
    f.template operator()<16>();
  else if (rows <= 32)
    f.template operator()<32>();
  else if (rows <= 64)
    f.template operator()<64>();
  else
    f.template operator()<128>();
}
int rows_of_block(int rows) {
  int of_block = 0;
  with_rows(rows, [&]<int kRows>() { of_block = kRows; });
  return of_block;
}

Product product_of(const bfloat16* weight, int outputs, int tiles, const bfloat16* activations, int rows, int inner,
                   int most_rows = 128) {
  return {map_of(weight, outputs, inner, kHalfOutputs),
          map_of(activations, rows, inner, rows_of_block(std::min(rows, most_rows))),
          kTileOutputs,
          kHalfOutputs,
          inner,
          tiles};
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int cluster, int bytes, bool early,
            CudaStream stream, const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream, config.attrs = attributes, config.numAttrs = early ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "decode_batch");
}

template <int kRows, int kSlices, typename... Parameters, typename... Arguments>
void launch_product(void (*kernel)(Parameters...), const Product& product, int rows, CudaStream stream,
                    const Arguments&... arguments) {
  constexpr int kBytes = ProductLayout<kRows>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "decode_batch");
  launch(kernel, dim3(product.tiles * kSlices, (rows + kRows - 1) / kRows), kProductAllThreads, kSlices, kBytes, true,
         stream, product, arguments...);
}

int tiles_of(int outputs, int each = kTileOutputs) {
  return (outputs + each - 1) / each;
}

}  // namespace

struct DecodeBatch::Launches {
  DecodeStep<bfloat16> step;
  std::vector<DecodeLayer<bfloat16>> layers;
  Exchange exchange;
  struct Layer {
    Product in, x, out;
  };
  std::vector<Layer> products;
  Product head{};

  Launches(const DecodeStep<bfloat16>& s, const DecodeLayer<bfloat16>* of) : step(s), layers(of, of + s.layers) {
    int64_t bytes = 0;
    const Exchange& e = exchange = exchange_at(s.workspace, s, &bytes);
    const int values = s.rank + 2 * s.states;
    for (const DecodeLayer<bfloat16>& layer : layers) {
      Layer l{
          product_of(layer.in_weight, 2 * s.d_inner, tiles_of(s.d_inner, kHalfOutputs), e.normed, s.rows, s.d_model),
          product_of(layer.x_weight, values, tiles_of(values), e.u, s.rows, s.d_inner, kXRows),
          product_of(layer.out_weight, s.d_model, tiles_of(s.d_model), e.y, s.rows, s.d_inner)};
      l.in.half_step = kHalfOutputs;  // channels, and their gates
      l.in.apart = s.d_inner;
      products.push_back(l);
    }
    head = product_of(s.head, s.vocab, tiles_of(s.vocab), e.normed, s.rows, s.d_model);
  }

  template <int kRows>
  void run(CudaStream stream) const {
    constexpr int kOfX = std::min(kRows, kXRows);
    embed<<<step.rows, 256, 0, stream>>>(step, exchange, layers.empty() ? step.norm_weight : layers[0].norm_weight);
    check_launch("decode_batch");
    const BatchStateLaunch state = batch_state_launch(step);
    for (size_t i = 0; i < layers.size(); ++i) {
      const DecodeLayer<bfloat16>& layer = layers[i];
      launch_product<kRows, 1>(project_in<kRows>, products[i].in, step.rows, stream, step, exchange, layer);
      launch_product<kOfX, kXSlices>(project_x<kOfX>, products[i].x, step.rows, stream, step, exchange);
      launch(state.kernel, state.grid, kStateThreads, 1, state.bytes, true, stream,
             BatchState{step, exchange.u, exchange.z, exchange.projected, exchange.y, layer.dt_weight, layer.dt_bias,
                        layer.A, layer.D, layer.state, state.groups});
      launch_product<kRows, kOutSlices>(project_out<kRows>, products[i].out, step.rows, stream, step, exchange,
                                        i + 1 < layers.size() ? layers[i + 1].norm_weight : step.norm_weight);
    }
    launch_product<kRows, 1>(project_head<kRows>, head, step.rows, stream, step, exchange);
  }
};

bool decode_batch_fits([[maybe_unused]] const DecodeShape& s) {
#ifdef ADDER_SM90A
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  constexpr int kLargest = 1 << 20;  // places but in matrices and logits are 32 bits
  return major == 9 && minor == 0 && s.rows >= 1 && s.rows <= kLargest && s.layers >= 0 && s.d_model % 8 == 0 &&
         s.d_model <= kLargest && s.d_inner % kStateChannels == 0 && s.d_inner <= kLargest && s.rank % 8 == 0 &&
         s.rank >= 8 && s.rank <= kMostStateRank && s.width >= 1 && s.width <= kMostConvWidth &&
         (s.states == 8 || s.states == 16 || s.states == 32 || s.states == 64);
#else
  return false;
#endif
}

int64_t decode_batch_workspace_bytes(const DecodeShape& s) {
  int64_t bytes = 0;
  exchange_at(nullptr, s, &bytes);
  return bytes;
}

DecodeBatch::DecodeBatch(const DecodeStep<bfloat16>& step, const DecodeLayer<bfloat16>* layers)
    : launches_(std::make_unique<Launches>(step, layers)) {}
DecodeBatch::~DecodeBatch() = default;

void DecodeBatch::run(CudaStream stream) const {
  with_rows(launches_->step.rows, [&]<int kRows>() { launches_->run<kRows>(stream); });
}

}  // namespace adder::kernels::cuda
