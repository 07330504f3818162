#include "adder/train/checkpoint.h"

#include <torch/torch.h>

#include <algorithm>

#include "adder/core/check.h"
#include "adder/core/files.h"
#include "adder/core/options_io.h"
#include "adder/models/load.h"

namespace adder::train {
namespace {

constexpr const char* kTrainingFile = "training.safetensors";

// Keys of "train" that may differ between a checkpoint and the run that continues it.
bool may_change(const std::string& key) {
  for (const char* free : {"out", "device", "steps", "log_every", "eval_every", "eval_batch", "sample_every",
                           "checkpoint_every", "keep_checkpoints", "threads", "prefetch", "recompute", "segment"})
    if (key == free) return true;
  return false;
}

void check_same(const nlohmann::ordered_json& saved, const nlohmann::ordered_json& now, const std::string& prefix) {
  for (const auto& [key, value] : now.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (prefix == "train" && may_change(key)) continue;
    const nlohmann::ordered_json& before = saved[key];
    if (value.is_object())
      check_same(before, value, name);
    else
      ADDER_CHECK(before == value,
                  "a run is continued with the configuration that it began with: {} was {}, now it is {}", name,
                  before.dump(), value.dump());
  }
}

// On the CPU.
torch::Tensor copy_of(const torch::Tensor& tensor) {
  return tensor.is_cpu() ? tensor.detach().clone() : tensor.detach().cpu();
}

int64_t count_of(const nlohmann::ordered_json& saved, const char* key, const std::string& where) {
  ADDER_CHECK(saved[key].is_number_unsigned() && saved[key].get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX),
              "{}: its state's '{}' must be a whole number from 0, got {}", where, key, saved[key].dump());
  return saved[key].get<int64_t>();
}

}  // namespace

Snapshot::Snapshot(const RunConfig& config, const models::MambaLMImpl& model, const AdamW& optimizer,
                   const RunState& state) {
  for (const auto& parameter : model.named_parameters())
    model_.emplace_back(parameter.key(), copy_of(parameter.value()));
  for (const auto& [name, tensor] : optimizer.named_state()) training_.emplace_back(name, copy_of(tensor));
  training_.emplace_back("generator", copy_of(state.generator));
  if (state.device_generator.defined()) training_.emplace_back("device_generator", copy_of(state.device_generator));
  for (size_t i = 0; i < state.carried.layers.size(); ++i) {
    training_.emplace_back(fmt::format("carried.{}.conv", i), copy_of(state.carried.layers[i].conv));
    training_.emplace_back(fmt::format("carried.{}.ssm", i), copy_of(state.carried.layers[i].ssm));
  }
  state_ = {{"step", state.step}, {"tokens", state.tokens}, {"data", state.data}, {"config", core::to_json(config)}};
  if (std::isfinite(state.best_loss)) state_["best_loss"] = state.best_loss;
}

void Snapshot::write(const std::filesystem::path& folder) const {
  weights::write_checkpoint_folder(folder, {{{models::kModelFile, model_}, {kTrainingFile, training_}}, state_});
}

void CheckpointWriter::write(std::shared_ptr<const Snapshot> snapshot, const std::filesystem::path& path,
                             int64_t step) {
  writing_ = std::async(std::launch::async, [snapshot = std::move(snapshot), path, step, run = run_, keep = keep_] {
    snapshot->write(path);
    auto numbered = weights::list_checkpoints(run);
    std::erase_if(numbered, [step](const auto& c) { return c.step > step; });
    for (size_t i = 0; i + static_cast<size_t>(keep) < numbered.size(); ++i)
      core::remove_folder_atomically(numbered[i].path);
  });
}

void CheckpointWriter::finish() {
  if (writing_.valid()) writing_.get();
}

RunState load_run(const weights::CheckpointFolder& folder, const RunConfig& config, models::MambaLMImpl& model,
                  AdamW& optimizer) {
  const nlohmann::ordered_json& saved = folder.state();
  for (const char* key : {"step", "tokens", "data", "config"})
    ADDER_CHECK(saved.contains(key), "{}: its state has no '{}'", folder.path().string(), key);
  RunConfig before;  // with the defaults of keys that are newer than the checkpoint
  core::from_json(before, saved["config"], folder.path().string() + ": config");
  check_same(core::to_json(before), core::to_json(config), "");
  models::load_parameters(model, folder.tensors(models::kModelFile), folder.path().string());
  const weights::NamedTensors training = folder.tensors(kTrainingFile);
  optimizer.load_state(training);
  RunState state;
  state.step = count_of(saved, "step", folder.path().string());
  state.tokens = count_of(saved, "tokens", folder.path().string());
  state.data = saved["data"];
  if (saved.contains("best_loss")) {
    ADDER_CHECK(saved["best_loss"].is_number(), "{}: its state's 'best_loss' must be a number, got {}",
                folder.path().string(), saved["best_loss"].dump());
    state.best_loss = saved["best_loss"].get<double>();
  }
  const std::map<std::string, torch::Tensor> tensors(training.begin(), training.end());
  const auto find = [&](const std::string& name) {
    const auto found = tensors.find(name);
    return found == tensors.end() ? torch::Tensor() : found->second;
  };
  state.generator = find("generator");
  state.device_generator = find("device_generator");
  const auto carried = std::count_if(tensors.begin(), tensors.end(),
                                     [](const auto& named) { return named.first.starts_with("carried."); });
  for (std::ptrdiff_t i = 0; i < (carried + 1) / 2; ++i) {
    state.carried.layers.push_back({find(fmt::format("carried.{}.conv", i)), find(fmt::format("carried.{}.ssm", i))});
    ADDER_CHECK(
        state.carried.layers.back().conv.defined() && state.carried.layers.back().ssm.defined(),
        "{}: its {} tensors 'carried.*' must be carried.0.conv, carried.0.ssm, carried.1.conv and so on; layer {} "
        "is not complete",
        folder.path().string(), carried, i);
  }
  ADDER_CHECK(state.generator.defined(), "{}: the state of the random generator is missing", folder.path().string());
  return state;
}

}  // namespace adder::train
