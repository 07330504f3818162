// Trains a small language model on the bytes of a text, saves it, loads it again and has it continue a prompt:
//   adder_example tyger.txt [folder of the model]
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "adder/core/options_io.h"
#include "adder/core/version.h"
#include "adder/infer/generate.h"
#include "adder/models/load.h"
#include "adder/models/mamba_lm.h"
#include "adder/tasks/language_model.h"
#include "adder/train/adamw.h"
#include "adder/weights/checkpoint_folder.h"

namespace {

constexpr int64_t kSteps = 120;

adder::models::MambaLM make_model() {
  adder::models::MambaLMOptions options;
  options.d_model = 64;
  options.n_layer = 2;
  options.vocab_size = 256;  // a token is a byte
  return adder::models::MambaLM(options);
}

// Returns the loss of the last step, in nats per byte.
double train(adder::models::MambaLM& model, adder::tasks::BatchSource& batches) {
  adder::train::OptimizerOptions adam;
  adam.lr = 1e-2;
  adam.schedule = "cosine";
  adam.warmup_steps = 10;
  adder::train::AdamW optimizer(*model, adam);
  double last = 0;
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto batch = batches.next();
    optimizer.zero_grad();
    const auto loss = model->loss(batch->input, batch->target);
    loss.mean.backward();
    optimizer.step(adder::train::learning_rate(adam, step, kSteps), optimizer.gradient_norm());
    last = loss.mean.item<double>();
    if (step % 20 == 0 || step + 1 == kSteps) std::cout << "step " << step << ": loss " << last << "\n";
  }
  return last;
}

void save(const adder::models::MambaLM& model, const std::string& folder) {
  adder::weights::NamedTensors tensors;
  for (const auto& parameter : model->named_parameters())
    tensors.emplace_back(parameter.key(), parameter.value().detach());
  adder::weights::write_checkpoint_folder(
      folder, {.files = {{adder::models::kModelFile, tensors}},
               .state = {{"step", kSteps}, {"config", {{"model", adder::core::to_json(model->options())}}}}});
}

std::string continued(const adder::models::MambaLM& model, const std::string& prompt) {
  adder::infer::GenerateOptions options;
  options.sampling.temperature = 0;  // the most probable byte each time
  options.sampling.max_tokens = 60;
  const std::vector<std::vector<int64_t>> prompts = {{prompt.begin(), prompt.end()}};
  const auto generation = adder::infer::generate(model, prompts, options);
  const std::vector<int64_t>& bytes = generation.rows.at(0).tokens;
  return {bytes.begin(), bytes.end()};
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

void run(const std::string& text_file, const std::string& folder) {
  torch::manual_seed(0);
  adder::models::MambaLM model = make_model();
  std::cout << "Adder " << adder::core::kVersion << ", " << model->parameter_count() << " parameters\n";

  adder::tasks::LanguageModelOptions text;
  text.files = {text_file};
  text.length = 64;
  text.validation_fraction = 0;
  const auto task = adder::tasks::make_language_model(text);
  const auto loss = train(model, *task->training(/*batch=*/8, /*seed=*/0));
  require(loss < 1, "the loss must fall below 1 nat per byte, got " + std::to_string(loss));

  save(model, folder);
  const adder::models::LoadedModel loaded = adder::models::load_model(folder);
  std::cout << "saved and loaded: " << loaded.path.string() << "\n";

  const std::string prompt = "In the forests";
  const std::string continuation = continued(loaded.model, prompt);
  std::cout << prompt << continuation << "\n";
  require(continuation == continued(model, prompt), "the loaded model must continue as the one that was saved");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::cerr << "usage: adder_example <text file> [folder of the model]\n";
    return EXIT_FAILURE;
  }
  try {
    run(argv[1], argc == 3 ? argv[2] : "example-model");
  } catch (const std::exception& error) {
    std::cerr << "adder_example: " << error.what() << "\n";
    return EXIT_FAILURE;
  }
}
