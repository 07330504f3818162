// Agreement with the Python package `tokenizers`, in the Python that ADDER_TOKENIZERS_PYTHON names (.venv/bin/python
// without it): tokenizer_peer.py runs as a child and says what the package makes of texts. ADDER_TOKENIZERS_STRINGS is
// how many random texts there are (20,000); from a million on every code point is compared too, which takes minutes.
#include <fmt/format.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstring>

#include "adder/core/files.h"
#include "adder/data/stream_decoder.h"
#include "tests/data/temporary_folder.h"

namespace adder::data {
namespace {

constexpr int64_t kThorough = 1'000'000;

std::string setting(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

class Peer : public testing::Test {
 protected:
  void SetUp() override {
    python_ = setting("ADDER_TOKENIZERS_PYTHON", std::string(ADDER_SOURCE_DIR) + "/.venv/bin/python");
    if (run("'" + python_ + "' -c 'import tokenizers'") != 0) GTEST_SKIP() << python_ << " has no tokenizers";
    strings_ = std::stoll(setting("ADDER_TOKENIZERS_STRINGS", "20000"));
  }

  static int run(const std::string& command) {
    const int status = std::system((command + " > /dev/null 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int script(const std::string& arguments) const {
    return run("TOKENIZERS_PARALLELISM=false '" + python_ + "' '" ADDER_SOURCE_DIR "/tests/data/tokenizer_peer.py' " +
               arguments);
  }

  // Compares all that the script says of a tokenizer: `command` and what it takes behind the file to write.
  void compare(const std::filesystem::path& tokenizer_path, const std::string& command, const std::string& more = {}) {
    const auto cases = folder_ / "cases.bin";
    ASSERT_EQ(script(command + " '" + tokenizer_path.string() + "' '" + cases.string() + "' " + more), 0);
    const Tokenizer tokenizer(tokenizer_path);
    const core::MappedFile file(cases);
    const std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
    int64_t compared = 0, different = 0;
    for (size_t at = 0; at < bytes.size(); ++compared) {
      const auto number = [&] {
        uint32_t value;
        std::memcpy(&value, bytes.data() + at, sizeof(value));
        at += sizeof(value);
        return value;
      };
      const uint32_t kind = number(), text_bytes = number(), count = number();
      const std::string_view text = bytes.substr(at, text_bytes);
      at += text_bytes;
      std::vector<int64_t> ids(count);
      for (int64_t& id : ids) id = number();
      if (!agrees(tokenizer, kind, text, ids) && ++different <= 5)
        ADD_FAILURE() << tokenizer_path << ": kind " << kind << ", text '" << text << "', ids "
                      << testing::PrintToString(ids);
    }
    EXPECT_EQ(different, 0) << "of " << compared;
    EXPECT_GT(compared, 0);
    std::printf("%s %s: %lld compared, %lld differ\n", tokenizer_path.filename().c_str(), command.c_str(),
                static_cast<long long>(compared), static_cast<long long>(different));
  }

  static bool agrees(const Tokenizer& tokenizer, uint32_t kind, std::string_view text,
                     const std::vector<int64_t>& ids) {
    if (kind < 2) return tokenizer.encode(text, kind == 0 ? SpecialTokens::kAllowed : SpecialTokens::kAsText) == ids;
    const bool skip_special = kind == 3;
    StreamDecoder stream(tokenizer, skip_special);
    std::string streamed;
    for (const int64_t id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    return tokenizer.decode(ids, skip_special) == text && streamed == text;
  }

  TemporaryFolder folder_;
  std::string python_;
  int64_t strings_ = 0;
};

TEST_F(Peer, GptNeoXOnRandomTexts) {
  const auto path = shared_data("tokenizer/gpt-neox-20b.tokenizer.json");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  for (int64_t part = 0; part * 200'000 < strings_; ++part)
    compare(path, "random", fmt::format("{} {}", std::min<int64_t>(strings_ - part * 200'000, 200'000), part));
}

TEST_F(Peer, GptNeoXOnRealTexts) {
  const auto path = shared_data("tokenizer/gpt-neox-20b.tokenizer.json");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  std::string files;
  for (const char* name : {"text/tinyshakespeare.txt.xz", "eval/lambada_openai.jsonl.xz", "eval/winogrande.jsonl.xz"})
    files += " '" + shared_data(name).string() + "'";
  if (strings_ >= kThorough) {
    for (const char* name : {"text/wiki_en.valid.txt.xz", "text/books.valid.txt.xz", "eval/hellaswag.jsonl.xz",
                             "eval/piqa.jsonl.xz", "eval/arc_easy.jsonl.xz", "eval/arc_challenge.jsonl.xz"})
      files += " '" + shared_data(name).string() + "'";
  }
  compare(path, "files", files);
}

// Of six, each has other options of those that a tokenizer file may have.
TEST_F(Peer, SmallTokenizers) {
  std::vector<std::filesystem::path> paths;
  std::string arguments;
  for (int i = 0; i < 6; ++i) {
    paths.push_back(folder_ / ("small" + std::to_string(i) + ".json"));
    arguments += " '" + paths.back().string() + "'";
  }
  ASSERT_EQ(script("train" + arguments), 0);
  for (size_t i = 0; i < paths.size(); ++i)
    compare(paths[i], "random", fmt::format("{} {}", std::min<int64_t>(strings_ / 4, 100'000), i));
  if (strings_ >= kThorough) compare(paths[1], "code-points");
}

TEST_F(Peer, EveryCodePoint) {
  const auto path = shared_data("tokenizer/gpt-neox-20b.tokenizer.json");
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there";
  if (strings_ < kThorough) GTEST_SKIP() << "ADDER_TOKENIZERS_STRINGS is below a million";
  compare(path, "code-points");
}

}  // namespace
}  // namespace adder::data
