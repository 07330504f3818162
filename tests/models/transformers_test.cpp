// Agreement with transformers' MambaForCausalLM and FalconMambaForCausalLM, both ways: its Python runs as a child.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "adder/infer/generate.h"
#include "adder/models/published.h"
#include "adder/weights/safetensors.h"
#include "tests/python_child.h"

namespace adder::tests {
namespace {

using torch::Tensor;

// Makes models whose greedy output is no constant, and says what they do: logits, loss, gradients, 64 greedy tokens and
// how far the two best lie apart at each, logits in bfloat16.
constexpr const char* kMake = R"(
import torch
from safetensors.torch import save_file
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

torch.set_num_threads(2)

def greedy(model, prompt, count):
    out, gaps, row = [], [], prompt
    for _ in range(count):
        best = model(row).logits[0, -1].topk(2)
        out.append(best.indices[0].item())
        gaps.append((best.values[0] - best.values[1]).item())
        row = torch.cat([row, best.indices[:1][None]], 1)
    return out, gaps

def make(name, kind, config, dtype=torch.float32):
    for scale in (2.0, 3.0, 4.0, 6.0):
        torch.manual_seed(7)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter_name, p in model.named_parameters():
                if p.dim() == 2 and 'A_log' not in parameter_name:
                    p.mul_(scale)
                elif parameter_name.endswith('proj.bias') and 'dt' not in parameter_name:
                    p.normal_(std=0.1)
            prompt = torch.randint(0, config.vocab_size, (1, 9))
            tokens, gaps = greedy(model, prompt, 64)
        if len(set(tokens)) >= 32:
            break
    else:
        raise SystemExit(f'{name}: only {len(set(tokens))} distinct tokens')
    ids = torch.randint(0, config.vocab_size, (2, 45))
    out = model(ids, labels=ids)
    out.loss.backward()
    told = {'ids': ids, 'logits': out.logits.detach(), 'loss': out.loss.detach()[None], 'prompt': prompt,
            'tokens': torch.tensor(tokens), 'gaps': torch.tensor(gaps)}
    told |= {'grad.' + n: p.grad for n, p in model.named_parameters()}
    model.save_pretrained(name, max_shard_size='60KB' if 'parts' in name else '5GB')
    half = kind(config).eval()
    half.load_state_dict(model.state_dict())
    with torch.no_grad():
        told['logits_bfloat16'] = half.to(torch.bfloat16)(ids).logits.float()
    save_file({k: v.contiguous() for k, v in told.items()}, name + '.safetensors')

make('usual', MambaForCausalLM, MambaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=3))
make('biases_untied', MambaForCausalLM,
     MambaConfig(vocab_size=199, hidden_size=48, num_hidden_layers=2, state_size=8, use_bias=True, use_conv_bias=False,
                 tie_word_embeddings=False, time_step_rank=5, conv_kernel=3))
make('parts', MambaForCausalLM, MambaConfig(vocab_size=321, hidden_size=96, num_hidden_layers=2, state_size=24, expand=3,
                                            use_bias=True, layer_norm_epsilon=1e-4))
make('falcon', FalconMambaForCausalLM, FalconMambaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2))
)";

// Loads what came back and says how far its logits are from those of the model that went.
constexpr const char* kBack = R"(
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

for name in ('usual', 'biases_untied', 'parts', 'falcon'):
    told = load_file(name + '.safetensors')
    model, info = AutoModelForCausalLM.from_pretrained('./' + name + '_back', output_loading_info=True)
    assert not any(info.values()), (name, info)
    with torch.no_grad():
        logits = model.eval()(told['ids']).logits
    assert torch.equal(logits, told['logits']) or (logits - told['logits']).abs().max() < 1e-6, name
    if name in ('usual', 'biases_untied'):
        original = torch.load(name + '_original/pytorch_model.bin', weights_only=True)
        state = model.state_dict()
        for key, tensor in original.items():
            theirs = key.replace('backbone.embedding.', 'backbone.embeddings.')
            assert torch.equal(tensor, state[theirs]), (name, key)
        assert len(original) == len(state), (len(original), len(state))
print('all the same')
)";

class Transformers : public PythonTest {
 protected:
  void SetUp() override { prepare("safetensors, torch, transformers"); }
};

double largest(const Tensor& x) {
  return x.abs().max().item<double>();
}

void expect_same(const std::string& name, const models::LoadedModel& loaded, const weights::SafetensorsFile& told) {
  SCOPED_TRACE(name);
  const Tensor ids = told.tensor("ids"), logits = told.tensor("logits");
  models::MambaLM model = loaded.model;
  {
    const torch::NoGradGuard no_grad;
    EXPECT_LT(largest(model->forward(ids).first - logits), 1e-4 * std::max(1.0, largest(logits)));
  }
  // Their loss leaves each row's last token without a target.
  const Tensor targets = torch::full_like(ids, -100);
  targets.slice(1, 0, ids.size(1) - 1).copy_(ids.slice(1, 1));
  model->train();
  const Tensor loss = model->loss(ids, targets).mean;
  loss.backward();
  model->eval();
  EXPECT_NEAR(loss.item<double>(), told.tensor("loss").item<double>(), 1e-5);
  for (const auto& parameter : model->named_parameters()) {
    std::string theirs = parameter.key();
    if (theirs == "backbone.embedding.weight") theirs = "backbone.embeddings.weight";
    const Tensor expected = told.tensor("grad." + theirs);
    EXPECT_LT(largest(parameter.value().grad() - expected), 1e-4 * std::max(1.0, largest(expected))) << theirs;
  }
}

void expect_same_greedy(const models::LoadedModel& loaded, const weights::SafetensorsFile& told) {
  const Tensor prompt = told.tensor("prompt").flatten(), tokens = told.tensor("tokens"), gaps = told.tensor("gaps");
  infer::GenerateOptions options;
  options.sampling.max_tokens = tokens.numel();
  options.sampling.temperature = 0;
  const auto* const from = prompt.const_data_ptr<int64_t>();
  const infer::Generation out = infer::generate(loaded.model, {{from, from + prompt.numel()}}, options);
  for (int64_t i = 0; i < tokens.numel(); ++i) {
    if (out.rows[0].tokens[static_cast<size_t>(i)] == tokens[i].item<int64_t>()) continue;
    EXPECT_LT(gaps[i].item<double>(), 1e-4) << "token " << i;  // after a near tie the rows go their own ways
    break;
  }
}

TEST_F(Transformers, TheirModelsAreOursAndOursAreTheirs) {
  const auto [status, output] = python(kMake);
  ASSERT_EQ(status, 0) << output;
  for (const std::string name : {"usual", "biases_untied", "parts", "falcon"}) {
    models::LoadedModel loaded = models::load_model(folder_ / name);
    const weights::SafetensorsFile told(folder_ / (name + ".safetensors"));
    expect_same(name, loaded, told);
    expect_same_greedy(loaded, told);
    models::save_published(*loaded.model, folder_ / (name + "_back"), {});
    models::SaveOptions original;
    original.format = models::PublishedFormat::kOriginal;
    if (name == "usual" || name == "biases_untied")
      models::save_published(*loaded.model, folder_ / (name + "_original"), original);

    const torch::NoGradGuard no_grad;
    loaded.model->cast_weights(torch::kBFloat16);
    const Tensor logits = told.tensor("logits"), theirs = told.tensor("logits_bfloat16");
    const double ours = largest(loaded.model->forward(told.tensor("ids")).first.to(torch::kFloat) - logits);
    EXPECT_LT(ours, 2 * largest(theirs - logits)) << name;
  }
  const auto [back, told] = python(kBack);
  EXPECT_EQ(back, 0) << told;
}

}  // namespace
}  // namespace adder::tests
