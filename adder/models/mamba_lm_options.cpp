#include "adder/models/mamba_lm.h"

namespace adder::models {

void MambaLMOptions::visit(core::FieldVisitor& v) {
  v.field("d_model", d_model, "width of the residual stream", {.min = 1, .max = 1 << 20});
  v.field("n_layer", n_layer, "number of blocks", {.min = 1, .max = 65536});
  v.field("vocab_size", vocab_size, "number of tokens", {.min = 1, .max = 1 << 30});
  v.field("pad_vocab_size_multiple", pad_vocab_size_multiple, "the embedding's rows are padded to a multiple of this",
          {.min = 1, .max = 1 << 20});
  v.field("tie_embeddings", tie_embeddings, "the head is the embedding");
  v.choice("norm", norm, "RMSNorm or LayerNorm", {"rms", "layer"});
  v.field("norm_eps", norm_eps, "its epsilon", {.min = 0});
  v.field("residual_dropout", residual_dropout, "share of each block's output that is dropped in training",
          {.min = 0, .max = 0.999});
  v.field("embedding_dropout", embedding_dropout, "share of the embedding's output that is dropped in training",
          {.min = 0, .max = 0.999});
  v.group("mixer", mixer, "the selective SSM block");
}

int64_t MambaLMOptions::padded_vocab() const {
  return (vocab_size + pad_vocab_size_multiple - 1) / pad_vocab_size_multiple * pad_vocab_size_multiple;
}

}  // namespace adder::models
