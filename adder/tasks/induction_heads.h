#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// Induction heads (arXiv 2312.00752, section 4.1.2): random tokens, one of them preceded by a special token; the
// sequence ends with the special token, and the token that followed it the first time is to be given. The last token of
// the vocabulary is the special one.
struct InductionHeadsOptions {
  int64_t length = 256;                 // tokens of a sequence
  int64_t vocab_size = 16;              // tokens, the special one among them
  int64_t evaluation_sequences = 1024;  // fresh sequences of an evaluation

  void visit(core::FieldVisitor& v);
};

// Sequences without end for training, evaluation_sequences others for evaluation.
std::unique_ptr<Task> make_induction_heads(const InductionHeadsOptions& options);

}  // namespace adder::tasks
