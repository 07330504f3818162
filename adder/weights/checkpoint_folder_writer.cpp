#include <cmath>
#include <set>

#include "adder/core/check.h"
#include "adder/core/json_text.h"
#include "adder/core/version.h"
#include "adder/weights/checkpoint_folder.h"
#include "adder/weights/checkpoint_format.h"

namespace adder::weights {
namespace fs = std::filesystem;
using namespace checkpoint;
using nlohmann::ordered_json;
namespace {

// The state lies one level deep in the document.
constexpr int kMaxStateDepth = core::kMaxJsonDepth - 1;

// Refuses what would not come back from JSON as it was.
void check_state(const ordered_json& value, const std::string& where, int depth) {
  ADDER_CHECK(depth <= kMaxStateDepth, "{} is nested more than {} deep", where, kMaxStateDepth);
  ADDER_CHECK(!value.is_binary() && !value.is_discarded(), "{} must be a JSON value", where);
  ADDER_CHECK(!value.is_number_float() || std::isfinite(value.get<double>()),
              "{} must be finite, as JSON has no other numbers; got {}", where, value.get<double>());
  for (const auto& [key, item] : value.items()) {
    if (value.is_structured()) check_state(item, where + "." + key, depth + 1);
  }
}

std::string with_hash(const ordered_json& document) {
  const std::string text = document.dump(2) + "\n";
  return fmt::format("{}{}{}{}", std::string_view(text).substr(0, text.size() - kEnd.size()), kBeforeHash,
                     hash_text(text), kAfterHash);
}

}  // namespace

void write_checkpoint_folder(const fs::path& path, const CheckpointContent& content) {
  ordered_json files = ordered_json::object(), tensors = ordered_json::object();
  try {
    ADDER_CHECK(content.state.is_object(), "the state must be a JSON object, got {}", content.state.type_name());
    check_state(content.state, "state", 1);
    std::set<std::string_view> names;
    for (const CheckpointFile& file : content.files) {
      ADDER_CHECK(is_file_name(file.name), "file {} must have a plain name that ends in {}", shown_name(file.name),
                  kSuffix);
      ADDER_CHECK(names.insert(file.name).second, "file {} is given twice", shown_name(file.name));
    }
    core::write_folder_atomically(path, [&](const fs::path& into) {
      for (const CheckpointFile& file : content.files) {
        // Other programs take a file for one of PyTorch's by this entry.
        write_safetensors(into / file.name, file.tensors, {{"format", "pt"}});
        const core::MappedFile written(into / file.name);
        files[file.name] = {{"bytes", written.bytes().size()}, {"xxh3_128", core::hash_bytes(written.bytes())}};
        // From the tensors in memory, so that these hashes do not depend on the file.
        ordered_json& hashes = tensors[file.name] = ordered_json::object();
        for (const auto& [name, tensor] : file.tensors) hashes[name] = tensor_hash(tensor);
      }
      const ordered_json document = {
          {"format", kFormat}, {"version", kFormatVersion}, {"adder_version", core::kVersion},
          {"files", files},    {"tensors", tensors},        {"state", content.state}};
      core::write_file_atomically(into / kDocument, with_hash(document));
    });
  } catch (const Error& error) {
    fail("{}: the checkpoint was not written: {}", path.string(), error.what());
  } catch (const ordered_json::type_error&) {
    fail("{}: the checkpoint was not written: the texts in its state must be UTF-8", path.string());
  }
}

}  // namespace adder::weights
