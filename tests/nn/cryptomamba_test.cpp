// A real trained model, CryptoMamba (volume variant), by the layers alone: its published predictions come out again.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <sstream>

#include "adder/nn/block.h"
#include "adder/weights/safetensors.h"
#include "adder/weights/torch_file.h"
#include "tests/data/temporary_folder.h"

namespace adder::tests {
namespace {
namespace fs = std::filesystem;

using torch::Tensor;
using Weights = std::function<Tensor(const std::string&)>;

constexpr int64_t kDays = 14;
// In the order of the model's input.
const std::vector<std::string> kFeatures = {"Timestamp", "Open", "High", "Low", "Close", "Volume"};

std::vector<std::vector<std::string>> read_table(const fs::path& path, char separator) {
  std::ifstream in(path);
  std::vector<std::vector<std::string>> rows;
  for (std::string line; std::getline(in, line);) {
    rows.emplace_back();
    std::stringstream cells(line);
    for (std::string cell; std::getline(cells, cell, separator);) rows.back().push_back(cell);
  }
  return rows;
}

// (windows, features, days), volumes in billions.
Tensor windows(const fs::path& prices, int64_t count) {
  const auto rows = read_table(prices, ',');
  const auto days = static_cast<int64_t>(rows.size()) - 1;
  Tensor table = torch::empty({days, static_cast<int64_t>(kFeatures.size())}, torch::kDouble);
  for (size_t f = 0; f < kFeatures.size(); ++f) {
    const auto column = std::ranges::find(rows[0], kFeatures[f]) - rows[0].begin();
    for (int64_t day = 0; day < days; ++day)
      table[day][static_cast<int64_t>(f)] = std::stod(rows[static_cast<size_t>(day) + 1][static_cast<size_t>(column)]) /
                                            (kFeatures[f] == "Volume" ? 1e9 : 1);
  }
  return table.unfold(0, kDays, 1).slice(0, 0, count).to(torch::kFloat);
}

nn::Block block(const std::string& prefix, int64_t width, const Weights& weights) {
  nn::MambaOptions options;
  options.d_state = 64;
  nn::Block made(width, options, 1, "layer", 1e-5, 0);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : made->named_parameters()) {
    std::string name = parameter.key();
    if (name.starts_with("mixer.")) name = "op." + name.substr(6);
    parameter.value().copy_(weights(prefix + name));
  }
  made->eval();
  return made;
}

Tensor predict(Tensor x, const Weights& weights) {
  const torch::NoGradGuard no_grad;
  for (int group = 0; group < 3; ++group) {
    const std::string prefix = fmt::format("model.blocks.{}.", group);
    Tensor residual;
    for (int i = 0; i < 4; ++i) {
      const auto out = block(fmt::format("{}{}.", prefix, i), x.size(-1), weights)->forward(x, residual, torch::kFloat);
      x = out.x, residual = out.residual;
    }
    x = x + residual;
    x = torch::linear(x, weights(prefix + "4.weight"), weights(prefix + "4.bias"));
  }
  return torch::linear(x.transpose(1, 2).flatten(1), weights("model.post_process.1.weight"),
                       weights("model.post_process.1.bias"))
      .flatten();
}

TEST(CryptoMamba, ThePublishedPredictions) {
  const fs::path folder = data::shared_data("weights/cryptomamba");
  if (!fs::exists(folder)) GTEST_SKIP() << "no weights at " << folder;
  const auto table = read_table(folder / "pred_test_v.tsv", '\t');
  Tensor published = torch::empty({static_cast<int64_t>(table.size()) - 1}, torch::kDouble);
  for (int64_t i = 0; i < published.numel(); ++i) published[i] = std::stod(table[static_cast<size_t>(i) + 1][1]);
  ASSERT_EQ(published.numel(), 350);
  const Tensor input = windows(folder / "test.csv", published.numel());

  const weights::SafetensorsFile safetensors(folder / "cmamba_v.safetensors");
  const weights::TorchFile checkpoint(folder / "cmamba_v.ckpt");
  for (const Weights& weights : {Weights([&](const std::string& name) { return safetensors.tensor(name); }),
                                 Weights([&](const std::string& name) { return checkpoint.tensor(name); })}) {
    const Tensor apart = ((predict(input, weights).to(torch::kDouble) - published) / published).abs();
    EXPECT_LT(apart.max().item<double>(), 1e-4);
    RecordProperty("largest", fmt::format("{:.2e}", apart.max().item<double>()));
  }
}

}  // namespace
}  // namespace adder::tests
