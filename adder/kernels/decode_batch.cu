#include "adder/kernels/decode_batch.h"

#include <vector>

#include "adder/kernels/decode_batch_products.cuh"
#include "adder/kernels/decode_batch_state.cuh"
#include "adder/kernels/scratch.h"

// A layer is four kernels, of which each begins before the last has ended and asks for its weights meanwhile:
//
//   1. in_proj, its inputs the residual stream times the norm's weight, its outputs scaled by the norm; the convolution
//      and SiLU of what it found
//   2. x_proj, its inner dimension divided among the blocks of a cluster
//   3. dt_proj, softplus, the recurrence and the gate (decode_batch_state.cuh)
//   4. out_proj, divided as x_proj, added to the residual stream; the next norm's input and its sums of squares
namespace adder::kernels::cuda {
namespace {

BatchExchange exchange_in(const DecodeShape& s, Carver<float>& carver) {
  const int64_t rows = s.rows;
  const auto narrow = [&](int64_t count) { return reinterpret_cast<bfloat16*>(carver.take((count + 1) / 2)); };
  BatchExchange e;
  e.residual = carver.take(rows * s.d_model);
  e.squares = carver.take(rows * tiles_of(s.d_model));
  e.normed = narrow(rows * s.d_model);
  e.u = narrow(rows * s.d_inner);
  e.z = narrow(rows * s.d_inner);
  e.y = narrow(rows * s.d_inner);
  e.projected = narrow(rows * (s.rank + 2 * s.states));
  return e;
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
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int cluster, int bytes, CudaStream stream,
            const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads), config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream, config.attrs = attributes, config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "decode_batch");
}

template <int kRows, int kSlices, typename... Parameters, typename... Arguments>
void launch_product(void (*kernel)(Parameters...), const Product& product, int rows, CudaStream stream,
                    const Arguments&... arguments) {
  constexpr int kBytes = ProductLayout<kRows>::kBytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "decode_batch");
  launch(kernel, dim3(product.tiles * kSlices, (rows + kRows - 1) / kRows), kProductAllThreads, kSlices, kBytes, stream,
         product, arguments...);
}

}  // namespace

struct DecodeBatch::Launches {
  DecodeStep<bfloat16> step;
  std::vector<DecodeLayer<bfloat16>> layers;
  BatchExchange exchange;
  struct Layer {
    Product in, x, out;
  };
  std::vector<Layer> products;
  Product head{};

  Launches(const DecodeStep<bfloat16>& s, const DecodeLayer<bfloat16>* of) : step(s), layers(of, of + s.layers) {
    Carver<float> carver(static_cast<std::byte*>(s.workspace));
    const BatchExchange& e = exchange = exchange_in(s, carver);
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
      launch(state.kernel, state.grid, kStateThreads, 1, state.bytes, stream,
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
  return major == 9 && minor == 0 && s.rows >= 1 && s.rows <= kLargest && s.d_model % 8 == 0 && s.d_model <= kLargest &&
         s.d_inner % kStateChannels == 0 && s.d_inner <= kLargest && s.rank % 8 == 0 && s.rank >= 8 &&
         s.rank <= kMostStateRank && s.width >= 1 && s.width <= kMostConvWidth &&
         (s.states == 8 || s.states == 16 || s.states == 32 || s.states == 64);
#else
  return false;
#endif
}

int64_t decode_batch_workspace_bytes(const DecodeShape& s) {
  Carver<float> carver(nullptr);
  exchange_in(s, carver);
  return static_cast<int64_t>(carver.used());
}

DecodeBatch::DecodeBatch(const DecodeStep<bfloat16>& step, const DecodeLayer<bfloat16>* layers)
    : launches_(std::make_unique<Launches>(step, layers)) {}
DecodeBatch::~DecodeBatch() = default;

void DecodeBatch::run(CudaStream stream) const {
  with_rows(launches_->step.rows, [&]<int kRows>() { launches_->run<kRows>(stream); });
}

}  // namespace adder::kernels::cuda
