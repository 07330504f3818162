#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <torch/torch.h>

#include <algorithm>
#include <chrono>

#include "adder/infer/generate.h"
#include "adder/kernels/machine_rates.h"
#include "adder/models/mamba_lm.h"
#include "adder/train/adamw.h"
#include "adder/train/device_step.h"
#include "cli/bench.h"

namespace adder::cli {
namespace {

using torch::Tensor;

models::MambaLMOptions model_options(const BenchOptions& o) {
  models::MambaLMOptions options;
  options.d_model = o.d_model;
  options.n_layer = o.n_layer;
  options.vocab_size = o.vocab;
  return options;
}

int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<int64_t>(usage.ru_maxrss) * 1024;
}

// What is compared with double: two layers of the model's width, small, so that they do not set the peak of memory.
models::MambaLMOptions small_options(const BenchOptions& o) {
  models::MambaLMOptions options = model_options(o);
  options.n_layer = std::min<int64_t>(2, o.n_layer);
  options.vocab_size = std::min<int64_t>(512, o.vocab);
  return options;
}

models::MambaLM in_double(const models::MambaLM& model) {
  models::MambaLM wide(model->options());
  const torch::NoGradGuard no_grad;
  const auto from = model->named_parameters();
  for (auto& parameter : wide->named_parameters()) parameter.value().copy_(from[parameter.key()]);
  wide->to(torch::kDouble);
  wide->set_activation_type(torch::kDouble);
  return wide;
}

// Of the loss and of every parameter's gradient.
double train_error(const BenchOptions& o) {
  models::MambaLM model(small_options(o));
  models::MambaLM wide = in_double(model);
  model->set_activation_type(o.type());
  model->to(o.where());
  const Tensor all_ids = torch::randint(model->options().vocab_size, {1, 49}, torch::kLong);
  const auto loss_of = [&](models::MambaLM& m) {
    const Tensor ids = all_ids.to(m->device());
    const Tensor loss = m->loss(ids.slice(1, 0, 48), ids.slice(1, 1, 49)).mean;
    loss.backward();
    return loss.detach();
  };
  double error = relative_error(loss_of(model), loss_of(wide));
  const auto got = model->parameters(), expected = wide->parameters();
  std::vector<double> sizes;
  for (const Tensor& parameter : expected) sizes.push_back(parameter.grad().abs().max().item<double>());
  const double largest = *std::max_element(sizes.begin(), sizes.end());
  for (size_t i = 0; i < expected.size(); ++i)
    if (sizes[i] > 1e-7 * largest)  // below that it is rounding beside the others
      error = std::max(error, relative_error(got[i].grad(), expected[i].grad()));
  return error;
}

// Of the logits after a prompt and three steps.
double decode_error(const BenchOptions& o) {
  models::MambaLM model(small_options(o));
  models::MambaLM wide = in_double(model);
  if (o.type() != torch::kFloat) model->cast_weights(o.type());
  model->to(o.where());
  std::vector<int64_t> tokens(40);
  for (size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<int64_t>(i * 37 % static_cast<size_t>(model->options().vocab_size));
  infer::DecodeSession session(model);
  session.prefill({{tokens.begin(), tokens.end() - 3}});
  for (size_t i = tokens.size() - 3; i < tokens.size(); ++i) session.step({tokens[i]});
  const torch::NoGradGuard no_grad;
  const Tensor ids = torch::tensor(tokens, torch::kLong).unsqueeze(0);
  const Tensor expected = wide->forward(ids).first.select(1, -1);
  return relative_error(session.state().logits, expected);
}

}  // namespace

nlohmann::ordered_json bench_train(const BenchOptions& o) {
  torch::manual_seed(0);
  const double error = train_error(o);
  check_error("train", error, o.type() == torch::kFloat ? 1e-4 : 5e-2);
  models::MambaLM model(model_options(o));
  model->set_activation_type(o.type());
  model->set_recompute(nn::parse_recompute(o.recompute));
  const torch::Device device = o.where();
  model->to(device);
  train::AdamW optimizer(*model, {});
  const auto random_batch = [&] {
    const Tensor ids = torch::randint(o.vocab, {o.batch, o.length + 1}, torch::kLong);
    tasks::TaskBatch batch;
    batch.input = device::pinned(ids.slice(1, 0, o.length).contiguous(), device);
    batch.target = device::pinned(ids.slice(1, 1, o.length + 1).contiguous(), device);
    return batch;
  };
  double ms = 0;
  int64_t peak = 0;
  if (device.is_cuda()) {
    train::DeviceStep steps(model, optimizer, 1, false, device, o.segment);
    const std::vector<tasks::TaskBatch> batches = {random_batch()};
    ms = median_ms(device, [&] {
      steps.launch(batches, 1e-4);
      if (steps.pending() == steps.most_pending()) steps.take();
    });
    peak = device::memory(device).peak;
  } else {
    ms = median_ms(device, [&] {
      const tasks::TaskBatch batch = random_batch();
      optimizer.zero_grad();
      tasks::batch_backward(*model, batch, {}, 1, o.segment);
      optimizer.step(1e-4, optimizer.gradient_norm());
    });
    peak = peak_resident_bytes();
  }
  return {{"d_model", o.d_model},
          {"n_layer", o.n_layer},
          {"vocab", o.vocab},
          {"batch", o.batch},
          {"length", o.length},
          {"recompute", o.recompute},
          {"segment", o.segment},
          {"parameters", model->parameter_count()},
          {"tokens_per_s", static_cast<double>(o.batch * o.length) / (ms * 1e-3)},
          {"step_ms", ms},
          {"peak_bytes", peak},
          {"error", error}};
}

nlohmann::ordered_json bench_decode(const BenchOptions& o) {
  torch::manual_seed(0);
  const double error = decode_error(o);
  check_error("decode", error, o.type() == torch::kFloat ? 1e-4 : 5e-2);
  models::MambaLM model = [&] {
    const torch::NoGradGuard no_grad;
    return models::MambaLM(model_options(o));
  }();
  model->eval();
  if (o.type() != torch::kFloat) model->cast_weights(o.type());
  const torch::Device device = o.where();
  model->to(device);
  int64_t weight_bytes = 0;
  for (const Tensor& parameter : model->parameters()) weight_bytes += static_cast<int64_t>(parameter.nbytes());

  std::vector<std::vector<int64_t>> prompts(o.batch, std::vector<int64_t>(o.prompt));
  for (int64_t b = 0; b < o.batch; ++b)
    for (int64_t i = 0; i < o.prompt; ++i) prompts[b][i] = (b * 7919 + i * 104729) % o.vocab;
  std::vector<double> prompt_times, step_times, total_times;
  infer::GenerateOptions options;
  options.sampling.temperature = 0;
  options.sampling.max_tokens = o.tokens + 1;  // the first is the prompt's
  for (int run = 0; run < 4; ++run) {          // the first one warms up
    std::vector<std::chrono::steady_clock::time_point> marks;
    const infer::Generation done = infer::generate(model, prompts, options, [&](int64_t row, int64_t) {
      if (row == 0) marks.push_back(std::chrono::steady_clock::now());
      return infer::Proceed::kContinue;
    });
    if (run == 0) continue;
    prompt_times.push_back(done.prompt_seconds);
    total_times.push_back(done.prompt_seconds + done.decode_seconds);
    for (size_t i = 1; i < marks.size(); ++i)
      step_times.push_back(std::chrono::duration<double>(marks[i] - marks[i - 1]).count());
  }
  const auto median = [](std::vector<double>& times) {
    std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
  };
  const double prompt = median(prompt_times), step = median(step_times), total = median(total_times);
  const auto rows = static_cast<double>(o.batch);
  nlohmann::ordered_json line = {{"d_model", o.d_model},
                                 {"n_layer", o.n_layer},
                                 {"vocab", o.vocab},
                                 {"batch", o.batch},
                                 {"prompt", o.prompt},
                                 {"tokens", o.tokens},
                                 {"prompt_tokens_per_s", rows * static_cast<double>(o.prompt) / prompt},
                                 {"decode_tokens_per_s", rows / step},
                                 {"total_tokens_per_s", rows * static_cast<double>(o.tokens) / total},
                                 {"error", error},
                                 {"weight_bytes", weight_bytes}};
  if (!device.is_cpu()) return line;
  const double read_rate = kernels::cpu::read_bytes_per_second(at::get_num_threads());
  line.update({{"machine_read_bytes_per_s", read_rate},
               {"decode_read_share", static_cast<double>(weight_bytes) / step / read_rate}});
  return line;
}

}  // namespace adder::cli
