// adder eval --task against the same sets scored with transformers and tokenizers, whose Python runs as a child.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "adder/models/published.h"
#include "tests/cli/program_runner.h"
#include "tests/data/temporary_folder.h"
#include "tests/python_child.h"

namespace adder::tests {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kLimit = 30;

// As lm-evaluation-harness scores; one request at a time, from the logits of the whole.
constexpr const char* kScore = R"(
import json, lzma, math, os, shutil, sys
import torch
from tokenizers import Tokenizer
from transformers import MambaConfig, MambaForCausalLM

data, limit = DATA, LIMIT
torch.manual_seed(0)
model = MambaForCausalLM(MambaConfig(vocab_size=50280, hidden_size=32, num_hidden_layers=2)).eval()
model.save_pretrained('model')
shutil.copy(data + '/tokenizer/gpt-neox-20b.tokenizer.json', 'model/tokenizer.json')
tokenizer = Tokenizer.from_file('model/tokenizer.json')
end = tokenizer.token_to_id('<|endoftext|>')

def encode(text):
    return tokenizer.encode(text).ids

def score(context, continuation):
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, before = encode(context + continuation), encode(context)
    if not context:
        whole, before = [end] + whole, [end]
    with torch.no_grad():
        logits = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    targets = whole[len(before):]
    rows = logits[len(before) - 1:-1]
    return rows[range(len(targets)), targets].double().sum().item(), rows.argmax(-1).tolist() == targets

out = {}
for name in ('lambada_openai', 'hellaswag', 'winogrande'):
    lines = lzma.open(f'{data}/eval/{name}.jsonl.xz', 'rt').readlines()[:limit]
    right, by_byte, sums = 0, 0, 0.0
    for line in map(json.loads, lines):
        if 'choices' in line:
            scores = [score(line['ctx'], c)[0] for c in line['choices']]
            lengths = [len(c.removeprefix(' ').encode()) for c in line['choices']]
            right += max(range(len(scores)), key=lambda i: scores[i]) == line['gold']
            by_byte += max(range(len(scores)), key=lambda i: scores[i] / lengths[i]) == line['gold']
        elif 'ctxs' in line:
            scores = [score(c, line['target'])[0] for c in line['ctxs']]
            right += max(range(len(scores)), key=lambda i: scores[i]) == line['gold']
        else:
            value, greedy = score(line['ctx'], line['target'])
            right, sums = right + greedy, sums + value
    out[name] = {'acc': right / limit, 'acc_norm': by_byte / limit, 'perplexity': math.exp(-sums / limit)}
json.dump(out, open('scores.json', 'w'))
)";

class EvalSets : public PythonTest {};

TEST_F(EvalSets, AgreeWithTheHarness) {
  const fs::path data = data::shared_data("");
  if (!fs::exists(data / "eval")) GTEST_SKIP() << "no evaluation sets at " << data / "eval";
  prepare("torch, tokenizers, transformers");
  if (IsSkipped()) return;
  std::string script = kScore;
  script.replace(script.find("DATA"), 4, "'" + fs::canonical(data).string() + "'");
  script.replace(script.find("LIMIT"), 5, std::to_string(kLimit));
  const auto [status, output] = python(script);
  ASSERT_EQ(status, 0) << output;
  const json expected = json::parse(read("scores.json"));
  for (const auto& [name, score] : expected.items()) {
    const auto [code, line] = run("eval " + (folder_ / "model").string() + " --json --limit " + std::to_string(kLimit) +
                                      " --task " + (data / "eval" / (name + ".jsonl.xz")).string(),
                                  "", "2>/dev/null");
    ASSERT_EQ(code, 0) << line;
    const json got = json::parse(line);
    EXPECT_EQ(got["examples"], kLimit);
    EXPECT_NEAR(got["acc"], score["acc"], 1e-9) << name;
    if (got.contains("acc_norm")) {
      EXPECT_NEAR(got["acc_norm"], score["acc_norm"], 1e-9) << name;
    }
    if (got.contains("perplexity")) {
      const double perplexity = score["perplexity"];
      EXPECT_NEAR(got["perplexity"], perplexity, 1e-4 * perplexity) << name;
    }
  }
}

TEST(EvalSet, BadLinesAreNamed) {
  const data::TemporaryFolder folder;
  models::MambaLMOptions options;  // of bytes
  options.d_model = 8, options.vocab_size = 256;
  models::save_published(*models::MambaLM(options), folder / "model", {});
  const auto refusal = [&](const std::string& lines) {
    const fs::path path = folder.write("set.jsonl", lines);
    const auto [code, output] = run("eval " + (folder / "model").string() + " --task " + path.string());
    EXPECT_EQ(code, 1);
    return output;
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal("{\"ctx\": \"a\", \"target\": \" b\"}\n{\"ctx\": 3, \"target\": \" b\"}\n"),
              HasSubstr("set.jsonl: line 2: \"ctx\" must be a text or a list of texts, got number"));
  EXPECT_THAT(refusal("{\"ctx\": \"a\"}\n"), HasSubstr("line 1: must hold \"ctx\" and \"target\""));
  EXPECT_THAT(refusal("{\"ctx\": \"a\", \"choices\": [\" b\", \" c\"], \"gold\": 2}\n"),
              HasSubstr("line 1: \"gold\" must be a whole number in [0, 2), got 2"));
  EXPECT_THAT(refusal("{\"ctx\": \"a\", \"choices\": [\" b\", \"\"], \"gold\": 1}\n"),
              HasSubstr("line 1: continuation 1 adds no token to its context"));
  EXPECT_THAT(refusal("not json\n"), HasSubstr("set.jsonl: line 1"));
}

}  // namespace
}  // namespace adder::tests
