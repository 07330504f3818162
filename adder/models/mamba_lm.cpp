#include "adder/models/mamba_lm.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/models/kept_generator.h"
#include "adder/nn/linear.h"
#include "adder/nn/parameters.h"
#include "adder/ops/linear_cross_entropy.h"

namespace adder::models {

// In double, which is exact for any model that fits into a machine and does not overflow for the others.
int64_t parameter_count(const MambaLMOptions& options) {
  const nn::MambaOptions& mixer = options.mixer;
  nn::MambaOptions smallest = mixer;
  smallest.expand = smallest.d_state = smallest.d_conv = 1;
  smallest.dt_rank = "none";
  const KeptGenerator kept;
  const nn::Mamba checked(1, smallest);

  const auto width = static_cast<double>(options.d_model), inner = static_cast<double>(mixer.expand) * width;
  const auto rank = static_cast<double>(mixer.rank(options.d_model));
  const auto states = static_cast<double>(mixer.d_state) * (mixer.complex ? 2 : 1);
  double block = 2 * inner * width + inner * width;    // in_proj, out_proj
  block += inner * static_cast<double>(mixer.d_conv);  // conv1d
  block += inner * (rank + 2 * states);                // x_proj, or B and C where constant
  block += inner * (rank + 1);                         // dt_proj
  block += inner * (states + 1);                       // A, D
  block += (mixer.bias ? 2 * inner + width : 0) + (mixer.conv_bias ? inner : 0);
  const double norm = options.norm == "layer" ? 2 * width : width;
  const double embedding = static_cast<double>(options.padded_vocab()) * width;
  const double count =
      (options.tie_embeddings ? 1 : 2) * embedding + static_cast<double>(options.n_layer) * (norm + block) + norm;
  ADDER_CHECK(count < 9e15, "the model has {:.1e} parameters, which no machine holds", count);
  return static_cast<int64_t>(count);
}

LMState LMState::detach() const {
  LMState out;
  for (const nn::MambaState& layer : layers) out.layers.push_back(layer.detach());
  return out;
}

LMState LMState::clone() const {
  LMState out;
  for (const nn::MambaState& layer : layers) out.layers.push_back(layer.clone());
  return out;
}

LMState LMState::select(const torch::Tensor& index) const {
  LMState out;
  for (const nn::MambaState& layer : layers)
    out.layers.push_back({layer.conv.index_select(0, index), layer.ssm.index_select(0, index)});
  return out;
}

MambaLMImpl::MambaLMImpl(const MambaLMOptions& options) : options_(options) {
  const auto backbone = register_module("backbone", std::make_shared<nn::ParametersImpl>());
  const auto part = [](torch::nn::Module& parent, const std::string& name) {
    auto child = std::make_shared<nn::ParametersImpl>();
    return parent.register_module(name, child);
  };
  const int64_t rows = options.padded_vocab();
  embedding_ = part(*backbone, "embedding")->add("weight", torch::randn({rows, options.d_model}) * 0.02);
  const auto layers = part(*backbone, "layers");
  for (int64_t i = 0; i < options.n_layer; ++i)
    blocks_.push_back(layers->register_module(
        std::to_string(i), nn::Block(options.d_model, options.mixer, options.n_layer, options.norm, options.norm_eps,
                                     options.residual_dropout)));
  norm_ = backbone->register_module("norm_f", nn::Norm(options.d_model, options.norm, options.norm_eps));
  // A tied head is the embedding itself: registered twice it would be counted and updated twice.
  if (!options.tie_embeddings)
    head_ = part(*this, "lm_head")->add("weight", nn::uniform_fan_in({rows, options.d_model}, options.d_model));
}

namespace {

void check_ids(const torch::Tensor& ids, int64_t vocab) {
  const torch::Tensor rows = ids.contiguous();
  const auto* values = rows.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < rows.numel(); ++i)
    ADDER_CHECK(values[i] >= 0 && values[i] < vocab,
                "MambaLM: ids must lie in [0, vocab_size) = [0, {}), got {} at ({}, {})", vocab, values[i],
                i / rows.size(1), i % rows.size(1));
}

// The rows of a weight and the weight itself as one step of the graph, for heads tied to the embedding: its gradient is
// the head's, to which that of the rows is added in place. Two steps would make and add a second matrix of that size.
struct TiedEmbedding : torch::autograd::Function<TiedEmbedding> {
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* context, const torch::Tensor& weight,
                                                const torch::Tensor& ids) {
    context->save_for_backward({ids});
    context->saved_data["vocab"] = weight.size(0);
    context->set_materialize_grads(false);
    return {torch::embedding(weight, ids), weight.view_as(weight)};
  }

  // By reference: a copy of the list would hold its tensors too.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::Tensor ids = context->get_saved_variables()[0];
    const int64_t vocab = context->saved_data["vocab"].toInt();
    const torch::Tensor &dx = grads[0], &dweight = grads[1];
    if (!dx.defined()) return {dweight, torch::Tensor()};
    const bool ours = dweight.defined() && dweight.is_cpu() && dweight.use_count() == 1 &&
                      dweight.storage().use_count() == 1 && dweight.is_contiguous();
    if (ours && !torch::GradMode::is_enabled() && ids.numel() < vocab)
      return {dweight.index_add_(0, ids.flatten(), dx.flatten(0, -2)), torch::Tensor()};
    const torch::Tensor of_rows = torch::embedding_dense_backward(dx, ids, vocab, -1, false);
    return {dweight.defined() ? dweight + of_rows : of_rows, torch::Tensor()};
  }
};

std::pair<torch::Tensor, torch::Tensor> tied_embedding(const torch::Tensor& weight, const torch::Tensor& ids) {
  if (!torch::GradMode::is_enabled()) return {torch::embedding(weight, ids), weight};
  const torch::autograd::variable_list out = TiedEmbedding::apply(weight, ids);
  return {out[0], out[1]};
}

}  // namespace

void MambaLMImpl::check(const torch::Tensor& ids, const LMState& state) const {
  ADDER_CHECK(ids.dim() == 2 && ids.scalar_type() == torch::kLong,
              "MambaLM: ids must be int64 of shape (B, L), got {} of shape ({})", torch::toString(ids.scalar_type()),
              fmt::join(ids.sizes().vec(), ", "));
  ADDER_CHECK(state.layers.empty() || static_cast<int64_t>(state.layers.size()) == options_.n_layer,
              "MambaLM: a state of {} layers does not fit a model of {}", state.layers.size(), options_.n_layer);
  if (ids.is_cpu()) check_ids(ids, options_.vocab_size);
}

std::pair<torch::Tensor, LMState> MambaLMImpl::backbone(torch::Tensor x, const LMState& state,
                                                        const nn::SequenceInfo& sequence) {
  if (options_.embedding_dropout > 0 && is_training()) x = torch::dropout(x, options_.embedding_dropout, true);
  if (probe_) probe_("backbone.embedding", x);
  torch::Tensor residual;
  LMState after;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    auto out = blocks_[i]->forward(x, residual, type_, state.layers.empty() ? nn::MambaState() : state.layers[i],
                                   sequence, recompute_);
    x = out.x;
    residual = out.residual;
    if (probe_) probe_("backbone.layers." + std::to_string(i), x);
    after.layers.push_back(std::move(out.state));
  }
  const torch::Tensor normed = norm_->forward(x, residual, type_).first;
  if (probe_) probe_("backbone.norm_f", normed);
  return {normed, after};
}

std::pair<torch::Tensor, LMState> MambaLMImpl::hidden(const torch::Tensor& ids, const LMState& state,
                                                      const nn::SequenceInfo& sequence) {
  check(ids, state);
  return backbone(torch::embedding(embedding_, ids), state, sequence);
}

torch::Tensor MambaLMImpl::logits(const torch::Tensor& hidden, bool independent) {
  return nn::linear(hidden, head(), {}, {.independent = independent}).narrow(-1, 0, options_.vocab_size);
}

std::pair<torch::Tensor, LMState> MambaLMImpl::forward(const torch::Tensor& ids, const LMState& state,
                                                       const nn::SequenceInfo& sequence) {
  auto [h, after] = hidden(ids, state, sequence);
  return {logits(h), after};
}

MambaLMImpl::Loss MambaLMImpl::loss(const torch::Tensor& ids, const torch::Tensor& targets, const LMState& state,
                                    const nn::SequenceInfo& sequence) {
  ADDER_CHECK(targets.sizes() == ids.sizes(), "MambaLM: targets must have the shape of ids, ({}), got ({})",
              fmt::join(ids.sizes().vec(), ", "), fmt::join(targets.sizes().vec(), ", "));
  check(ids, state);
  const auto [rows, head] =
      options_.tie_embeddings ? tied_embedding(embedding_, ids) : std::pair(torch::embedding(embedding_, ids), head_);
  auto [h, after] = backbone(rows, state, sequence);
  auto [mean, each, predictions] = ops::linear_cross_entropy(h.reshape({-1, options_.d_model}), head,
                                                             targets.reshape({-1}), -100, options_.vocab_size);
  return {mean, each, predictions, after};
}

void MambaLMImpl::cast_weights(torch::ScalarType type) {
  const torch::NoGradGuard no_grad;
  const std::string large[] = {"in_proj.weight",  "x_proj.weight",    "dt_proj.weight",
                               "out_proj.weight", "embedding.weight", "lm_head.weight"};
  for (auto& parameter : named_parameters())
    for (const std::string& suffix : large)
      if (parameter.key().ends_with(suffix)) parameter.value().set_data(parameter.value().to(type));
  type_ = type;
}

int64_t MambaLMImpl::parameter_count() const {
  int64_t count = 0;
  for (const torch::Tensor& parameter : parameters()) count += parameter.numel();
  return count;
}

}  // namespace adder::models
