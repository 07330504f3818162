#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "adder/core/options_io.h"
#include "adder/train/options.h"

namespace adder::tests {
namespace {

// "[table] key = default" of every key, as TOML writes them.
std::set<std::string> keys_of_the_program() {
  std::set<std::string> keys;
  std::istringstream toml(core::to_toml(train::RunConfig()));
  std::string table, line;
  while (std::getline(toml, line)) {
    if (line.starts_with('['))
      table = line;
    else if (!line.empty() && !line.starts_with('#'))
      keys.insert(table + " " + line);
  }
  return keys;
}

// The same of the guide's rows "| `key` | type | `default` | ..." below their headings "### `[table]`".
std::set<std::string> keys_of_the_guide() {
  std::set<std::string> keys;
  std::ifstream guide(ADDER_SOURCE_DIR "/docs/guides/configuration.md");
  std::string table, line;
  while (std::getline(guide, line) && line != "## Keys of generation") {
    if (line.starts_with("### `[")) table = line.substr(5, line.size() - 6);
    if (!line.starts_with("| `")) continue;
    const size_t key_end = line.find('`', 3), value = line.find("| `", key_end) + 3;
    keys.insert(table + " " + line.substr(3, key_end - 3) + " = " +
                line.substr(value, line.find("` |", value) - value));
  }
  return keys;
}

TEST(ConfigurationGuide, HasEveryKeyWithItsDefault) {
  const std::set<std::string> program = keys_of_the_program(), guide = keys_of_the_guide();
  EXPECT_GT(program.size(), 50u);
  for (const std::string& key : program) EXPECT_TRUE(guide.contains(key)) << "not in the guide: " << key;
  for (const std::string& key : guide) EXPECT_TRUE(program.contains(key)) << "only in the guide: " << key;
}

}  // namespace
}  // namespace adder::tests
