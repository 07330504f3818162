#include "adder/models/gguf.h"

#include "adder/weights/gguf_mamba.h"

namespace adder::models {

void save_gguf(const MambaLMImpl& model, const std::filesystem::path& path, const GgufOptions& options) {
  const MambaLMOptions& o = model.options();
  const nn::MambaOptions& m = o.mixer;
  weights::GgufMamba out;
  out.name = options.name;
  out.d_model = o.d_model, out.n_layer = o.n_layer, out.vocab_size = o.vocab_size;
  out.d_inner = m.expand * o.d_model, out.d_state = m.d_state, out.d_conv = m.d_conv, out.dt_rank = m.rank(o.d_model);
  out.norm_eps = o.norm_eps, out.inner_norm = m.inner_norm != "none", out.inner_norm_eps = m.inner_norm_eps;
  out.accept_norm_eps_inside = options.accept_norm_eps;
  out.norm = o.norm, out.discretization = m.discretization, out.conv_bias = m.conv_bias, out.bias = m.bias;
  out.selective_B = m.selective_B, out.selective_C = m.selective_C, out.complex = m.complex;
  for (const auto& parameter : model.named_parameters())
    out.tensors.emplace_back(parameter.key(), parameter.value().detach());
  weights::write_gguf(path, out, options.type, options.tokenizer);
}

}  // namespace adder::models
