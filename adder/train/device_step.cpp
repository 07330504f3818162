#include "adder/train/device_step.h"

#include <torch/torch.h>

namespace adder::train {
namespace {

constexpr int64_t kMostPending = 8;

bool same_shapes(const std::vector<tasks::TaskBatch>& a, const std::vector<tasks::TaskBatch>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i].input.sizes() != b[i].input.sizes()) return false;
  return true;
}

}  // namespace

DeviceStep::DeviceStep(models::MambaLM model, AdamW& optimizer, int64_t accumulate, bool carry, at::Device device,
                       int64_t segment)
    : model_(std::move(model)),
      optimizer_(optimizer),
      accumulate_(accumulate),
      carry_(carry),
      device_(device),
      segment_(segment),
      lr_(torch::zeros({}, torch::device(device).dtype(torch::kFloat))),
      stopped_(torch::zeros({}, torch::device(device).dtype(torch::kFloat))),
      latest_(torch::zeros({3}, torch::device(device).dtype(torch::kDouble))),
      figures_(latest_, kMostPending) {}

std::vector<tasks::TaskBatch> DeviceStep::on_device(const std::vector<tasks::TaskBatch>& batches) const {
  std::vector<tasks::TaskBatch> there = batches;
  for (tasks::TaskBatch& batch : there) {
    batch.input = device::to_device(batch.input, device_);
    batch.target = device::to_device(batch.target, device_);
  }
  return there;
}

// Everything of a step, as work for the device.
void DeviceStep::work(const std::vector<tasks::TaskBatch>& batches, bool update) {
  optimizer_.zero_grad();
  models::LMState state = state_;
  torch::Tensor loss_sum = torch::zeros({}, latest_.options());
  for (size_t i = 0; i < batches.size(); ++i) {
    if (!carry_ || (i > 0 && batches[i].fresh)) state = {};
    const auto loss = tasks::batch_backward(*model_, batches[i], state, 1 / static_cast<double>(accumulate_), segment_);
    if (carry_) state = loss.state;
    loss_sum += loss.mean / static_cast<double>(accumulate_);
  }
  const torch::NoGradGuard no_grad;
  const torch::Tensor norm = optimizer_.squared_norm().sqrt();
  if (!update) return;
  stopped_.copy_(torch::maximum(stopped_, (loss_sum + norm).isfinite().logical_not().to(torch::kFloat)));
  optimizer_.step_on_device(lr_, norm, stopped_);
  const torch::Tensor goes_on = stopped_ == 0;
  for (size_t i = 0; carry_ && i < state.layers.size(); ++i) {
    state_.layers[i].conv.copy_(torch::where(goes_on, state.layers[i].conv, state_.layers[i].conv));
    state_.layers[i].ssm.copy_(torch::where(goes_on, state.layers[i].ssm, state_.layers[i].ssm));
  }
  latest_[0].copy_(loss_sum);
  latest_[1].copy_(norm);
  latest_[2].copy_(stopped_);
}

void DeviceStep::launch(const std::vector<tasks::TaskBatch>& batches, double lr) {
  lr_.fill_(lr);
  if (carry_ && state_.layers.empty()) {
    // The shapes of the state are those that a pass leaves behind.
    const torch::NoGradGuard no_grad;
    state_ = model_->hidden(batches[0].input.slice(1, 0, 1).to(device_)).second;
    for (nn::MambaState& layer : state_.layers) layer = {torch::zeros_like(layer.conv), torch::zeros_like(layer.ssm)};
  }
  if (carry_ && batches[0].fresh)
    for (nn::MambaState& layer : state_.layers) layer.conv.zero_(), layer.ssm.zero_();
  bool fixed = true;  // packed documents make other shapes each time; a state that ends within a step is not recorded
  for (size_t i = 0; i < batches.size(); ++i)
    fixed = fixed && !batches[i].starts.defined() && (i == 0 || !carry_ || !batches[i].fresh);
  if (graph_ == nullptr && fixed) {
    inputs_ = on_device(batches);
    graph_ = std::make_unique<device::Graph>(device_);
    auto generator = at::Generator(at::globalContext().defaultGenerator(device_));
    const torch::Tensor before = generator.get_state();
    graph_->record([&] { work(inputs_, false); }, [&] { work(inputs_, true); });
    generator.set_state(before);
  }
  if (fixed && same_shapes(inputs_, batches)) {
    for (size_t i = 0; i < batches.size(); ++i) {
      inputs_[i].input.copy_(batches[i].input, /*non_blocking=*/true);
      inputs_[i].target.copy_(batches[i].target, /*non_blocking=*/true);
    }
    graph_->replay();
  } else {
    work(on_device(batches), true);
  }
  optimizer_.mark_changed();
  figures_.push(latest_);
}

DeviceStep::Figures DeviceStep::take() {
  const torch::Tensor values = figures_.pop();
  const auto v = values.accessor<double, 1>();
  return {v[0], v[1], v[2] != 0};
}

models::LMState DeviceStep::carried() const {
  return state_.clone();
}

void DeviceStep::set_carried(const models::LMState& state) {
  state_ = {};
  for (const nn::MambaState& layer : state.layers)
    state_.layers.push_back({layer.conv.to(device_).clone(), layer.ssm.to(device_).clone()});
}

}  // namespace adder::train
