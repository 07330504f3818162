// A user's walk: a transformers folder with its tokenizer, fine-tuned on a text from the shell, continued, and taken
// back to transformers and to llama.cpp. docs/guides/published-models.md goes the same way.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "adder/weights/gguf.h"
#include "tests/cli/program_runner.h"
#include "tests/python_child.h"

namespace adder::tests {
namespace {
namespace fs = std::filesystem;
using testing::HasSubstr;

// A tokenizer trained on the project's own text, and a model for it.
constexpr const char* kMake = R"(
import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MambaConfig, MambaForCausalLM

text = open('text.txt', encoding='utf-8').read()
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=500, special_tokens=['<|endoftext|>'],
                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
torch.manual_seed(0)
MambaForCausalLM(MambaConfig(vocab_size=504, hidden_size=32, num_hidden_layers=2)).save_pretrained('model')
tokenizer.save('model/tokenizer.json')
)";

constexpr const char* kContinue = R"(
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
tokenizer = PreTrainedTokenizerFast(tokenizer_file='tuned/tokenizer.json')
model = AutoModelForCausalLM.from_pretrained('./tuned')
ids = tokenizer('The state', return_tensors='pt').input_ids
out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=0)
print('<<' + tokenizer.decode(out[0], skip_special_tokens=True) + '>>')
)";

class PublishedWalk : public PythonTest {
 protected:
  void SetUp() override { prepare("torch, tokenizers, transformers"); }

  std::string adder(const std::string& arguments) const {
    const auto [code, output] = run(arguments, "cd '" + folder_.string() + "' && ");
    EXPECT_EQ(code, 0) << arguments << "\n" << output;
    return output;
  }
};

TEST_F(PublishedWalk, FromTransformersAndBack) {
  fs::copy_file(fs::path(ADDER_SOURCE_DIR) / "docs" / "architecture.md", folder_ / "text.txt");
  const auto [status, output] = python(kMake);
  ASSERT_EQ(status, 0) << output;

  EXPECT_THAT(adder("data tokenize text.txt --tokenizer model/tokenizer.json --out data"),
              HasSubstr("data/tokens.bin: "));
  const std::string trained =
      adder("train " ADDER_SOURCE_DIR
            "/configs/finetune.toml --finetune model --set train.out=run --set train.steps=6 "
            "--set task.language_model.token_file=data/tokens.bin --set task.language_model.length=64 "
            "--set train.eval_every=3 --set train.optimizer.warmup_steps=1");
  EXPECT_THAT(trained, HasSubstr("finished after 6 steps"));
  // A run that goes on finds itself where it was.
  EXPECT_THAT(adder("train " ADDER_SOURCE_DIR "/configs/finetune.toml --finetune model --set train.out=run --resume "
                    "--set train.steps=6 --set task.language_model.token_file=data/tokens.bin "
                    "--set task.language_model.length=64 --set train.eval_every=3 "
                    "--set train.optimizer.warmup_steps=1"),
              HasSubstr("6 steps"));

  const std::string text = adder("generate run --prompt 'The state' --set temperature=0 --set max_tokens=12 --quiet");
  adder("convert run tuned --format hf");
  const auto [code, theirs] = python(kContinue);
  ASSERT_EQ(code, 0) << theirs;
  EXPECT_THAT(theirs, HasSubstr("<<" + text.substr(0, text.size() - 1) + ">>"));
  EXPECT_EQ(adder("generate tuned --prompt 'The state' --set temperature=0 --set max_tokens=12 --quiet"), text);

  adder("convert tuned original --format original");
  EXPECT_EQ(adder("generate original --prompt 'The state' --set temperature=0 --set max_tokens=12 --quiet"), text);
  // llama.cpp itself: tests/weights/llama_cpp_test.cpp.
  EXPECT_THAT(run("convert tuned tuned.gguf --format gguf", "cd '" + folder_.string() + "' && ").output,
              HasSubstr("tuned.gguf"));
}

}  // namespace
}  // namespace adder::tests
