#include "adder/infer/decode_kernels.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/kernels/decode_batch.h"
#include "adder/kernels/decode_rows.h"
#include "adder/kernels/decode_step.h"
#include "adder/kernels/sample_tokens.h"
#include "adder/ops/add_norm.h"
#include "adder/ops/cuda_call.h"

namespace adder::infer {
namespace {

using torch::Tensor;

template <typename T>
constexpr torch::ScalarType type_of = std::is_same_v<T, float> ? torch::kFloat : torch::kBFloat16;

// The weights of a model that the kernels are made for, W being what its large matrices are kept in.
template <typename W>
struct Weights {
  struct Layer {
    Tensor norm, in, conv, conv_bias, x, dt, dt_bias, A, D, out;
  };
  std::vector<Layer> layers;
  Tensor embedding, norm, head;
  bool usable = true;  // types, contiguity, alignment

  explicit Weights(const models::MambaLM& model) {
    const auto all = model->named_parameters();
    const models::MambaLMOptions& o = model->options();
    for (int64_t i = 0; i < o.n_layer; ++i) {
      const std::string layer = "backbone.layers." + std::to_string(i) + ".", mixer = layer + "mixer.";
      const Tensor A = -usable_as<float>(all[mixer + "A_log"]).exp();
      layers.push_back({usable_as<float>(all[layer + "norm.weight"]), usable_as<W>(all[mixer + "in_proj.weight"]),
                        usable_as<float>(all[mixer + "conv1d.weight"]),
                        o.mixer.conv_bias ? usable_as<float>(all[mixer + "conv1d.bias"]) : Tensor(),
                        usable_as<W>(all[mixer + "x_proj.weight"]), usable_as<W>(all[mixer + "dt_proj.weight"]),
                        usable_as<float>(all[mixer + "dt_proj.bias"]), A, usable_as<float>(all[mixer + "D"]),
                        usable_as<W>(all[mixer + "out_proj.weight"])});
    }
    embedding = usable_as<W>(all["backbone.embedding.weight"]);
    norm = usable_as<float>(all["backbone.norm_f.weight"]);
    head = o.tie_embeddings ? embedding : usable_as<W>(all["lm_head.weight"]);
  }

 private:
  template <typename T>
  Tensor usable_as(const Tensor& tensor) {
    usable = usable && tensor.scalar_type() == type_of<T> && tensor.is_contiguous() &&
             reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    return tensor.detach();
  }
};

bool usable_state(const models::LMState& state) {
  for (const nn::MambaState& layer : state.layers)
    for (const Tensor& t : {layer.conv, layer.ssm})
      if (t.scalar_type() != torch::kFloat || !t.is_contiguous() ||
          reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 != 0)
        return false;
  return true;
}

template <typename T>
const T* data(const Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return t.defined() ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
}

kernels::TokenCopies copies_of(const CopiedTokens& copied) {
  if (!copied.tokens.defined()) return {};
  return {mutable_data<int64_t>(copied.tokens), copied.tokens.size(0), mutable_data<int64_t>(copied.turns)};
}

kernels::DecodeShape shape_of(const models::MambaLM& model, int64_t rows) {
  const models::MambaLMOptions& o = model->options();
  const auto size = [](int64_t value) { return static_cast<int>(std::min<int64_t>(value, int64_t{1} << 30)); };
  return {size(rows),
          size(o.n_layer),
          size(o.d_model),
          size(o.mixer.expand * o.d_model),
          size(o.mixer.rank(o.d_model)),
          size(o.mixer.d_state),
          size(o.mixer.d_conv),
          size(o.vocab_size)};
}

// A step and its layers in host memory; the caller adds the layers' table and the workspace.
template <typename W>
std::pair<kernels::DecodeStep<W>, std::vector<kernels::DecodeLayer<W>>> step_of(const models::MambaLM& model,
                                                                                const kernels::DecodeShape& shape,
                                                                                const Weights<W>& weights,
                                                                                const StepTensors& tensors) {
  std::vector<kernels::DecodeLayer<W>> layers;
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const auto& w = weights.layers[i];
    const nn::MambaState& state = tensors.state.layers[i];
    layers.push_back({data<float>(w.norm), data<W>(w.in), data<float>(w.conv), data<float>(w.conv_bias), data<W>(w.x),
                      data<W>(w.dt), data<float>(w.dt_bias), data<float>(w.A), data<float>(w.D), data<W>(w.out),
                      mutable_data<float>(state.conv), mutable_data<float>(state.ssm)});
  }
  kernels::DecodeStep<W> step{};
  static_cast<kernels::DecodeShape&>(step) = shape;
  step.embedding = data<W>(weights.embedding);
  step.norm_weight = data<float>(weights.norm);
  step.head = data<W>(weights.head);
  step.eps = static_cast<float>(model->options().norm_eps);
  step.tokens = mutable_data<int64_t>(tensors.tokens);
  step.logits = mutable_data<float>(tensors.logits);
  return {step, std::move(layers)};
}

template <typename W>
std::function<void()> one_kernel(const models::MambaLM& model, const StepTensors& tensors, const CopiedTokens* chosen) {
  const kernels::DecodeShape shape = shape_of(model, tensors.tokens.size(0));
  const c10::cuda::CUDAGuard guard(tensors.tokens.device());
  if (!kernels::cuda::decode_step_fits<W>(shape)) return {};
  const Weights<W> weights(model);
  if (!weights.usable || !usable_state(tensors.state)) return {};
  auto [step, layers] = step_of(model, shape, weights, tensors);
  const auto bytes = static_cast<int64_t>(layers.size() * sizeof(layers[0]));
  const torch::TensorOptions raw = torch::device(tensors.tokens.device()).dtype(torch::kByte);
  const Tensor table = torch::from_blob(layers.data(), {bytes}, torch::kByte).to(raw.device());
  const Tensor workspace = torch::zeros({kernels::cuda::decode_step_workspace_bytes(shape)}, raw);
  step.layer = static_cast<const kernels::DecodeLayer<W>*>(table.const_data_ptr());
  step.workspace = workspace.mutable_data_ptr();
  step.choose = chosen != nullptr;
  if (chosen != nullptr) step.copies = copies_of(*chosen);
  const CopiedTokens copied = chosen != nullptr ? *chosen : CopiedTokens();
  return [step = step, weights, tensors, table, workspace, copied] {
    const c10::cuda::CUDAGuard on(tensors.tokens.device());
    kernels::cuda::decode_step(step, ops::current_stream());
  };
}

// More rows are left to products that divide them better.
constexpr int kMostBatchRows = 256;

std::function<void()> few_kernels(const models::MambaLM& model, const StepTensors& tensors) {
  using W = kernels::bfloat16;
  const kernels::DecodeShape shape = shape_of(model, tensors.tokens.size(0));
  const c10::cuda::CUDAGuard guard(tensors.tokens.device());
  if (shape.rows > kMostBatchRows || !kernels::cuda::decode_batch_fits(shape)) return {};
  const Weights<W> weights(model);
  if (!weights.usable || !usable_state(tensors.state)) return {};
  auto [step, layers] = step_of(model, shape, weights, tensors);
  const Tensor workspace = torch::empty({kernels::cuda::decode_batch_workspace_bytes(shape)},
                                        torch::device(tensors.tokens.device()).dtype(torch::kByte));
  step.workspace = workspace.mutable_data_ptr();
  const auto batch = std::make_shared<kernels::cuda::DecodeBatch>(step, layers.data());
  return [batch, weights, tensors, workspace] {
    const c10::cuda::CUDAGuard on(tensors.tokens.device());
    batch->run(ops::current_stream());
  };
}

// One block: from its input to its output, both (S, d_model).
template <typename W>
Tensor mix(const Tensor& normed, const typename Weights<W>::Layer& w, const nn::MambaState& state) {
  const int64_t rows = normed.size(0), channels = w.D.size(0), rank = w.dt.size(1), states = w.A.size(1);
  const Tensor xz = at::linear(normed, w.in), u = torch::empty({rows, channels}, xz.options());
  kernels::ConvRows<W> conv{rows,
                            channels,
                            w.conv.size(2),
                            data<W>(xz),
                            xz.stride(0),
                            data<float>(w.conv),
                            data<float>(w.conv_bias),
                            mutable_data<float>(state.conv),
                            mutable_data<W>(u)};
  kernels::cuda::conv_rows(conv, ops::current_stream());
  const Tensor projected = at::linear(u, w.x), delta = at::linear(projected.narrow(1, 0, rank), w.dt);
  const Tensor y = torch::empty_like(u);
  kernels::StateRows<W> p{};
  p.rows = rows, p.channels = channels, p.states = states;
  p.u = data<W>(u), p.delta = data<W>(delta), p.z = data<W>(xz) + channels;
  p.B = data<W>(projected) + rank, p.C = p.B + states;
  p.z_stride = xz.stride(0), p.B_stride = p.C_stride = projected.stride(0);
  p.delta_bias = data<float>(w.dt_bias), p.A = data<float>(w.A), p.D = data<float>(w.D);
  p.state = mutable_data<float>(state.ssm), p.y = mutable_data<W>(y);
  kernels::cuda::state_rows(p, ops::current_stream());
  return at::linear(y, w.out);
}

template <typename W>
std::function<void()> many_rows(const models::MambaLM& model, const StepTensors& tensors) {
  const models::MambaLMOptions& o = model->options();
  const Weights<W> weights(model);
  if (!kernels::cuda::state_rows_fit(o.mixer.d_state) || !weights.usable || !usable_state(tensors.state)) return {};
  const ops::AddNormOptions norm{.kind = "rms", .eps = o.norm_eps, .out_dtype = type_of<W>};
  const Tensor head = weights.head.narrow(0, 0, o.vocab_size);
  return [weights, tensors, norm, head] {
    const c10::cuda::CUDAGuard on(tensors.tokens.device());
    // Where no token could be chosen it is negative, which is told later.
    Tensor x = torch::embedding(weights.embedding, tensors.tokens.clamp_min(0));
    std::optional<Tensor> residual;
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      const auto [normed, sum] = ops::add_norm(x, residual, weights.layers[i].norm, std::nullopt, norm);
      residual = sum;
      x = mix<W>(normed, weights.layers[i], tensors.state.layers[i]);
    }
    const Tensor normed = std::get<0>(ops::add_norm(x, residual, weights.norm, std::nullopt, norm));
    tensors.logits.copy_(at::linear(normed, head));
  };
}

template <typename Float, typename Bfloat16>
std::function<void()> for_common_models(const models::MambaLM& model, const Float& in_float, const Bfloat16& in_16) {
  const models::MambaLMOptions& o = model->options();
  const nn::MambaOptions& m = o.mixer;
  const bool common = o.norm == "rms" && !m.complex && m.discretization == "euler" && m.selective_B && m.selective_C &&
                      !m.bias && m.inner_norm == "none" && m.rank(o.d_model) > 0;
  if (!common) return {};
  if (model->activation_type() == torch::kFloat) return in_float();
  if (model->activation_type() == torch::kBFloat16) return in_16();
  return {};
}

}  // namespace

std::function<void()> one_kernel_step(const models::MambaLM& model, const StepTensors& tensors,
                                      const CopiedTokens* chosen) {
  return for_common_models(
      model, [&] { return one_kernel<float>(model, tensors, chosen); },
      [&] { return one_kernel<kernels::bfloat16>(model, tensors, chosen); });
}

std::function<void()> many_rows_step(const models::MambaLM& model, const StepTensors& tensors) {
  return for_common_models(
      model, [&] { return many_rows<float>(model, tensors); },
      [&] {
        const std::function<void()> few = few_kernels(model, tensors);
        return few ? few : many_rows<kernels::bfloat16>(model, tensors);
      });
}

void sample_on_device(const Tensor& logits, const Tensor& places, const Tensor& seen, const SamplingOptions& options,
                      const Tensor& tokens, const CopiedTokens& copies) {
  ADDER_CHECK(logits.scalar_type() == torch::kFloat && logits.is_contiguous(),
              "sampling on a GPU needs contiguous float32 logits, got {}", torch::toString(logits.scalar_type()));
  constexpr int64_t kMostTokens = 1 << 23;
  ADDER_CHECK(logits.size(1) <= kMostTokens, "sampling on a GPU takes vocabularies of up to {} tokens, got {}",
              kMostTokens, logits.size(1));
  const c10::cuda::CUDAGuard guard(logits.device());
  kernels::SampleTokens p{};
  p.rows = logits.size(0), p.vocab = logits.size(1);
  p.logits = data<float>(logits);
  p.places = data<double>(places);
  p.temperature = options.temperature, p.top_p = options.top_p, p.min_p = options.min_p, p.top_k = options.top_k;
  p.repetition_penalty = options.repetition_penalty;
  p.seen = mutable_data<uint8_t>(seen);
  p.tokens = mutable_data<int64_t>(tokens);
  p.copies = copies_of(copies);
  kernels::cuda::sample_tokens(p, ops::current_stream());
}

}  // namespace adder::infer
