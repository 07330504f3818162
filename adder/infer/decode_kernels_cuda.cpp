#include <torch/torch.h>

#include <map>

#include "adder/infer/decode_kernels.h"
#include "adder/kernels/decode_step.h"
#include "adder/kernels/sample_tokens.h"
#include "adder/ops/cuda_call.h"

namespace adder::infer {
namespace {

template <typename T>
constexpr torch::ScalarType type_of = std::is_same_v<T, float> ? torch::kFloat : torch::kBFloat16;

// The parameters by name, of the type that the kernel reads them in.
class Weights {
 public:
  explicit Weights(const models::MambaLM& model) {
    for (const auto& parameter : model->named_parameters()) tensors_[parameter.key()] = parameter.value();
  }
  template <typename T>
  const T* get(const std::string& name) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return nullptr;
    const torch::Tensor& tensor = found->second;
    usable_ = usable_ && tensor.scalar_type() == type_of<T> && tensor.is_contiguous() &&
              reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
    return static_cast<const T*>(tensor.const_data_ptr());
  }
  const torch::Tensor& tensor(const std::string& name) const { return tensors_.at(name); }
  bool usable() const { return usable_; }

 private:
  std::map<std::string, torch::Tensor> tensors_;
  bool usable_ = true;
};

bool is_common(const models::MambaLMOptions& o) {
  const nn::MambaOptions& m = o.mixer;
  return o.norm == "rms" && !m.complex && m.discretization == "euler" && m.selective_B && m.selective_C && !m.bias &&
         m.inner_norm == "none" && m.rank(o.d_model) > 0;
}

template <typename W>
std::function<void()> fused(const models::MambaLM& model, const torch::Tensor& tokens, const torch::Tensor& logits,
                            const models::LMState& state) {
  const models::MambaLMOptions& o = model->options();
  kernels::DecodeStep<W> step{};
  const auto size = [](int64_t value) { return static_cast<int>(std::min<int64_t>(value, int64_t{1} << 30)); };
  step.rows = size(tokens.size(0)), step.layers = size(o.n_layer), step.d_model = size(o.d_model);
  step.d_inner = size(o.mixer.expand * o.d_model), step.rank = size(o.mixer.rank(o.d_model));
  step.states = size(o.mixer.d_state), step.width = size(o.mixer.d_conv), step.vocab = size(o.vocab_size);
  const c10::cuda::CUDAGuard guard(tokens.device());
  if (!kernels::cuda::decode_step_fits<W>(step)) return {};

  Weights weights(model);
  std::vector<torch::Tensor> kept = {tokens, logits};
  std::vector<kernels::DecodeLayer<W>> layers;
  for (int64_t i = 0; i < o.n_layer; ++i) {
    const std::string layer = "backbone.layers." + std::to_string(i) + ".", mixer = layer + "mixer.";
    const nn::MambaState& own = state.layers[static_cast<size_t>(i)];
    const torch::Tensor A = -weights.tensor(mixer + "A_log").detach().exp();
    kept.insert(kept.end(), {A, own.conv, own.ssm});
    if (own.conv.scalar_type() != torch::kFloat || A.scalar_type() != torch::kFloat) return {};
    layers.push_back({weights.get<float>(layer + "norm.weight"), weights.get<W>(mixer + "in_proj.weight"),
                      weights.get<float>(mixer + "conv1d.weight"), weights.get<float>(mixer + "conv1d.bias"),
                      weights.get<W>(mixer + "x_proj.weight"), weights.get<W>(mixer + "dt_proj.weight"),
                      weights.get<float>(mixer + "dt_proj.bias"), A.const_data_ptr<float>(),
                      weights.get<float>(mixer + "D"), weights.get<W>(mixer + "out_proj.weight"),
                      own.conv.mutable_data_ptr<float>(), own.ssm.mutable_data_ptr<float>()});
  }
  step.embedding = weights.get<W>("backbone.embedding.weight");
  step.norm_weight = weights.get<float>("backbone.norm_f.weight");
  step.head = o.tie_embeddings ? step.embedding : weights.get<W>("lm_head.weight");
  step.eps = static_cast<float>(o.norm_eps);
  if (!weights.usable()) return {};

  const auto bytes = static_cast<int64_t>(layers.size() * sizeof(layers[0]));
  const torch::TensorOptions raw = torch::device(tokens.device()).dtype(torch::kByte);
  const torch::Tensor table = torch::from_blob(layers.data(), {bytes}, torch::kByte).to(tokens.device());
  const torch::Tensor workspace = torch::zeros({kernels::cuda::decode_step_workspace_bytes(step)}, raw);
  step.layer = static_cast<const kernels::DecodeLayer<W>*>(table.const_data_ptr());
  step.workspace = workspace.mutable_data_ptr();
  step.tokens = tokens.const_data_ptr<int64_t>();
  step.logits = logits.mutable_data_ptr<float>();
  kept.insert(kept.end(), {table, workspace});
  return [step, kept, model] {
    const c10::cuda::CUDAGuard on(kept[0].device());
    kernels::cuda::decode_step(step, ops::current_stream());
  };
}

}  // namespace

std::function<void()> fused_step(const models::MambaLM& model, const torch::Tensor& tokens, const torch::Tensor& logits,
                                 const models::LMState& state) {
  if (!is_common(model->options())) return {};
  if (model->activation_type() == torch::kFloat) return fused<float>(model, tokens, logits, state);
  if (model->activation_type() == torch::kBFloat16) return fused<kernels::bfloat16>(model, tokens, logits, state);
  return {};
}

void sample_on_device(const torch::Tensor& logits, const torch::Tensor& places, const torch::Tensor& seen,
                      const SamplingOptions& options, const torch::Tensor& tokens) {
  const c10::cuda::CUDAGuard guard(logits.device());
  kernels::SampleTokens p{};
  p.rows = logits.size(0), p.vocab = logits.size(1);
  p.logits = logits.const_data_ptr<float>();
  p.places = places.const_data_ptr<double>();
  p.temperature = options.temperature, p.top_p = options.top_p, p.min_p = options.min_p, p.top_k = options.top_k;
  p.repetition_penalty = options.repetition_penalty;
  p.seen = seen.defined() ? seen.mutable_data_ptr<uint8_t>() : nullptr;
  p.tokens = tokens.mutable_data_ptr<int64_t>();
  kernels::cuda::sample_tokens(p, ops::current_stream());
}

}  // namespace adder::infer
