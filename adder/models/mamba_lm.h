#pragma once

#include <functional>
#include <vector>

#include "adder/nn/block.h"

namespace adder::models {

// The choices of a language model.
struct MambaLMOptions {
  int64_t d_model = 64;                 // width of the residual stream
  int64_t n_layer = 2;                  // number of blocks
  int64_t vocab_size = 256;             // number of tokens
  int64_t pad_vocab_size_multiple = 8;  // the embedding's rows are padded to a multiple of this
  bool tie_embeddings = true;           // the head is the embedding
  std::string norm = "rms";             // "rms" or "layer": RMSNorm or LayerNorm
  double norm_eps = 1e-5;               // its epsilon
  double residual_dropout = 0;          // share of each block's output that is dropped in training
  double embedding_dropout = 0;         // share of the embedding's output that is dropped in training
  nn::MambaOptions mixer;               // the selective SSM block

  void visit(core::FieldVisitor& v);
  // Rows of the embedding and the head: vocab_size, padded.
  int64_t padded_vocab() const;
};

// That of a model with these options, which is not built. Throws what building its blocks would.
int64_t parameter_count(const MambaLMOptions& options);

// The recurrent state of all layers. An empty list stands for zeros.
struct LMState {
  std::vector<nn::MambaState> layers;  // from the first layer to the last

  LMState detach() const;  // without gradient, in the same memory
  LMState clone() const;   // in memory of its own
  // The rows `index` (int64) of each tensor, as when sequences of a batch end or are copied.
  LMState select(const torch::Tensor& index) const;
};

// A language model of Mamba blocks: embedding, n_layer pre-norm blocks, final norm, head (tied to the embedding or
// not). Parameter names are those of the published checkpoints. Activations are computed in `type`, parameters stay as
// they are.
class MambaLMImpl : public torch::nn::Module {
 public:
  // Parameters are initialised from LibTorch's default generator. Throws what building the blocks throws.
  explicit MambaLMImpl(const MambaLMOptions& options);

  // ids (B, L) int64 in [0, vocab_size), to the final norm's output (B, L, d_model) and the state after.
  std::pair<torch::Tensor, LMState> hidden(const torch::Tensor& ids, const LMState& state = {},
                                           const nn::SequenceInfo& sequence = {});
  // (..., d_model) to logits (..., vocab_size). independent, as in SequenceInfo: (S, d_model), a row of each sequence.
  torch::Tensor logits(const torch::Tensor& hidden, bool independent = false);
  // ids (B, L) to logits (B, L, vocab_size) and the state after.
  std::pair<torch::Tensor, LMState> forward(const torch::Tensor& ids, const LMState& state = {},
                                            const nn::SequenceInfo& sequence = {});

  // What loss() gives; M = B L.
  struct Loss {
    torch::Tensor mean;         // () over the targets that are not ignored, nats
    torch::Tensor each;         // (M) without gradient
    torch::Tensor predictions;  // (M) int64
    LMState state;              // after the last step
  };
  // targets (B, L) int64, -100: ignored. Logits of the whole batch are never in memory.
  Loss loss(const torch::Tensor& ids, const torch::Tensor& targets, const LMState& state = {},
            const nn::SequenceInfo& sequence = {});

  // The type of activations: that of the parameters, or bfloat16 over float32 parameters, which are cast on use.
  void set_activation_type(torch::ScalarType type) { type_ = type; }
  torch::ScalarType activation_type() const { return type_; }  // as it is now
  // For training: memory for time. The gradients have the same bits, but for batches of up to 8 steps on a CPU, whose
  // products are summed in another order where no gradient is wanted.
  void set_recompute(nn::Recompute recompute) { recompute_ = recompute; }
  // For inference: keeps the large matrices in `type`; A, D, biases, norms and convolution stay float32. Also sets the
  // activations.
  void cast_weights(torch::ScalarType type);

  // Called with the name and output of each part in hidden(): for looking inside.
  using Probe = std::function<void(const std::string& name, const torch::Tensor& output)>;
  void set_probe(Probe probe) { probe_ = std::move(probe); }  // an empty one ends it

  const MambaLMOptions& options() const { return options_; }    // as they were given
  int64_t parameter_count() const;                              // a tied head counts once
  torch::Device device() const { return embedding_.device(); }  // of the parameters

 private:
  torch::Tensor head() const { return head_.defined() ? head_ : embedding_; }
  void check(const torch::Tensor& ids, const LMState& state) const;
  // hidden() from the embedding's rows (B, L, d_model).
  std::pair<torch::Tensor, LMState> backbone(torch::Tensor x, const LMState& state, const nn::SequenceInfo& sequence);

  MambaLMOptions options_;
  torch::ScalarType type_ = torch::kFloat;
  nn::Recompute recompute_ = nn::Recompute::kNone;
  torch::Tensor embedding_, head_;
  std::vector<nn::Block> blocks_;
  Probe probe_;
  nn::Norm norm_{nullptr};
};
TORCH_MODULE(MambaLM);

}  // namespace adder::models
