#include "adder/tasks/step.h"

#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/data/sampler.h"

namespace adder::tasks {
namespace {

// Spreads the rows' states over the segments: the first segment of a row goes on from the row's state, the others from
// zeros.
models::LMState to_segments(const models::LMState& rows, const torch::Tensor& first, int64_t segments) {
  models::LMState out;
  for (const nn::MambaState& layer : rows.layers) {
    const auto spread = [&](const torch::Tensor& t) {
      std::vector<int64_t> sizes = t.sizes().vec();
      sizes[0] = segments;
      return torch::zeros(sizes, t.options()).index_copy(0, first, t);
    };
    out.layers.push_back({spread(layer.conv), spread(layer.ssm)});
  }
  return out;
}

models::MambaLMImpl::Loss packed_loss(models::MambaLMImpl& model, const TaskBatch& batch,
                                      const models::LMState& state) {
  const int64_t rows = batch.input.size(0), length = batch.input.size(1);
  nn::SequenceInfo sequence;
  sequence.cu_seqlens = data::segment_offsets(batch.starts);
  const torch::Tensor row_begins = torch::arange(0, rows, torch::kLong) * length;
  const torch::Device device = batch.input.device();
  const torch::Tensor first = torch::searchsorted(*sequence.cu_seqlens, row_begins).to(device);
  const int64_t segments = sequence.cu_seqlens->size(0) - 1;
  // A row that begins with a document begins from zeros as well.
  models::LMState initial;
  if (!state.layers.empty()) {
    const torch::Tensor keep =
        batch.starts.select(1, 0).logical_not().to(torch::kFloat).reshape({rows, 1, 1}).to(device);
    models::LMState kept;
    for (const nn::MambaState& layer : state.layers) kept.layers.push_back({layer.conv * keep, layer.ssm * keep});
    initial = to_segments(kept, first, segments);
  }
  auto loss =
      model.loss(batch.input.reshape({1, rows * length}), batch.target.reshape({1, rows * length}), initial, sequence);
  const torch::Tensor last = torch::cat({first.slice(0, 1), torch::full({1}, segments, first.options())}) - 1;
  loss.state = loss.state.select(last);
  return loss;
}

}  // namespace

models::MambaLMImpl::Loss batch_loss(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state) {
  if (batch.starts.defined()) return packed_loss(model, batch, state);
  return model.loss(batch.input, batch.target, state);
}

namespace {

// The states that a row's segments begin with.
std::vector<models::LMState> segment_states(models::MambaLMImpl& model, const torch::Tensor& ids,
                                            const models::LMState& state, int64_t segment) {
  const torch::NoGradGuard no_grad;
  std::vector<models::LMState> states = {state};
  for (int64_t begin = 0; begin + segment < ids.size(1); begin += segment)
    states.push_back(model.hidden(ids.slice(1, begin, begin + segment), states.back()).second);
  return states;
}

models::LMState as_leaves(const models::LMState& state) {
  models::LMState leaves = state.detach();
  for (nn::MambaState& layer : leaves.layers) {
    layer.conv.requires_grad_();
    layer.ssm.requires_grad_();
  }
  return leaves;
}

BatchStep segmented_backward(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state,
                             double scale, int64_t segment) {
  const models::MambaLMOptions& options = model.options();
  ADDER_CHECK(!batch.starts.defined(), "rows with documents in them cannot be cut into segments");
  ADDER_CHECK(!model.is_training() || (options.residual_dropout == 0 && options.embedding_dropout == 0),
              "rows of a model with dropout cannot be cut into segments: its masks would not be the same twice");
  const std::vector<models::LMState> states = segment_states(model, batch.input, state, segment);
  const auto scored = [](const torch::Tensor& target) { return (target != kIgnored).sum().to(torch::kDouble); };
  const torch::Tensor all = scored(batch.target).clamp_min(1);
  BatchStep result;
  result.mean = torch::zeros({}, all.options());
  models::LMState behind;  // the leaves of the segment behind, whose gradients are those of this one's end
  for (int64_t i = static_cast<int64_t>(states.size()) - 1; i >= 0; --i) {
    const int64_t begin = i * segment, end = std::min(begin + segment, batch.input.size(1));
    const models::LMState leaves = i > 0 ? as_leaves(states[static_cast<size_t>(i)]) : state;
    const torch::Tensor target = batch.target.slice(1, begin, end);
    const auto loss = model.loss(batch.input.slice(1, begin, end), target, leaves);
    const torch::Tensor share = scored(target) / all;
    std::vector<torch::Tensor> roots = {loss.mean}, gradients = {(share * scale).to(loss.mean.scalar_type())};
    for (size_t layer = 0; layer < behind.layers.size(); ++layer) {
      const nn::MambaState &made = loss.state.layers[layer], &taken = behind.layers[layer];
      for (const auto& [root, leaf] : {std::pair(made.conv, taken.conv), std::pair(made.ssm, taken.ssm)}) {
        if (!leaf.grad().defined() || !root.requires_grad()) continue;
        roots.push_back(root);
        gradients.push_back(leaf.grad());
      }
    }
    torch::autograd::backward(roots, gradients);
    if (behind.layers.empty()) result.state = loss.state.detach();
    behind = leaves;
    result.mean += loss.mean.detach() * share;
  }
  return result;
}

}  // namespace

BatchStep batch_backward(models::MambaLMImpl& model, const TaskBatch& batch, const models::LMState& state, double scale,
                         int64_t segment) {
  if (segment > 0 && batch.input.size(1) > segment) return segmented_backward(model, batch, state, scale, segment);
  const auto loss = batch_loss(model, batch, state);
  (loss.mean * scale).backward();
  return {loss.mean.detach(), loss.state.detach()};
}

Evaluation evaluate(models::MambaLMImpl& model, BatchSource& source) {
  const torch::NoGradGuard no_grad;
  const bool training = model.is_training();
  model.eval();
  Evaluation result;
  double loss = 0;
  int64_t right = 0, right_sequences = 0;
  models::LMState state;
  const torch::Device device = model.device();
  while (std::optional<TaskBatch> batch = source.next()) {
    if (batch->fresh) state = {};
    batch->input = batch->input.to(device);
    batch->target = batch->target.to(device);
    const auto out = batch_loss(model, *batch, state);
    state = out.state;
    const torch::Tensor target = batch->target.reshape({-1}), scored = target != kIgnored;
    const torch::Tensor correct = out.predictions == target;
    loss += out.each.to(torch::kDouble).sum().item<double>();
    result.targets += scored.sum().item<int64_t>();
    right += (correct & scored).sum().item<int64_t>();
    right_sequences += (correct | scored.logical_not()).reshape(batch->target.sizes()).all(1).sum().item<int64_t>();
    result.sequences += batch->target.size(0);
  }
  model.train(training);
  ADDER_CHECK(result.targets > 0, "evaluation: the data hold no target");
  result.loss = loss / static_cast<double>(result.targets);
  result.accuracy = static_cast<double>(right) / static_cast<double>(result.targets);
  result.sequence_accuracy = static_cast<double>(right_sequences) / static_cast<double>(result.sequences);
  return result;
}

}  // namespace adder::tasks
