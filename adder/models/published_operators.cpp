#include <torch/library.h>
#include <torch/torch.h>

#include "adder/core/check.h"
#include "adder/core/json_text.h"
#include "adder/core/options_io.h"
#include "adder/models/kept_generator.h"
#include "adder/models/published.h"

// Published models as operators, for languages that reach C++ through schemas alone.
namespace adder::models {
namespace {

TORCH_LIBRARY_FRAGMENT(adder, m) {
  m.def("read_published(str folder) -> (str options, str[] names, Tensor[] parameters)");
  m.def(
      "write_published(str folder, str options, str[] names, Tensor[] parameters, *, str form=\"transformers\", "
      "ScalarType dtype=float) -> ()");
}

// ValueError in Python; anything else that is thrown is RuntimeError there.
template <typename Body>
auto with_errors_of_torch(const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

std::tuple<std::string, std::vector<std::string>, std::vector<at::Tensor>> read_published(c10::string_view folder) {
  return with_errors_of_torch([&] {
    const LoadedModel loaded = load_published(std::string(folder));
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters;
    for (const auto& parameter : loaded.model->named_parameters()) {
      names.push_back(parameter.key());
      parameters.push_back(parameter.value().detach());
    }
    return std::tuple(core::to_json(loaded.model->options()).dump(), std::move(names), std::move(parameters));
  });
}

PublishedFormat format_of(c10::string_view form) {
  if (form == "transformers") return PublishedFormat::kTransformers;
  if (form == "original") return PublishedFormat::kOriginal;
  fail("write_published: form must be \"transformers\" or \"original\", got \"{}\"", std::string(form));
}

void write_published(c10::string_view folder, c10::string_view options, const std::vector<std::string>& names,
                     at::TensorList parameters, c10::string_view form, at::ScalarType dtype) {
  with_errors_of_torch([&] {
    const PublishedFormat format = format_of(form);
    ADDER_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
                "write_published: dtype must be Float, BFloat16 or Half, got {}", c10::toString(dtype));
    ADDER_CHECK(names.size() == parameters.size(),
                "write_published: there must be a name for each parameter, got {} and {}", names.size(),
                parameters.size());
    MambaLMOptions model_options;
    core::from_json(model_options, core::parse_json(std::string(options), "options"), "options");
    (void)config_for(model_options, format, dtype);  // what cannot be told is refused before a model is made
    const KeptGenerator kept;
    MambaLM model(model_options);
    std::vector<std::pair<std::string, at::Tensor>> named;
    for (size_t i = 0; i < names.size(); ++i) named.emplace_back(names[i], parameters[i]);
    load_parameters(*model, named, "write_published");
    save_published(*model, std::string(folder), {.format = format, .type = dtype});
  });
}

TORCH_LIBRARY_IMPL(adder, CompositeExplicitAutograd, m) {
  m.impl("read_published", TORCH_FN(read_published));
  m.impl("write_published", TORCH_FN(write_published));
}

}  // namespace
}  // namespace adder::models
