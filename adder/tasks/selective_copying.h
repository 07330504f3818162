#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// Selective copying (arXiv 2312.00752, section 3.1 and appendix E.1): `tokens` tokens lie at random places among
// `noise` noise tokens; after them come `tokens` markers, at which the tokens are to be given back in order. Token 0 is
// noise, the last one the marker.
struct SelectiveCopyingOptions {
  int64_t noise = 4096;                 // noise tokens among which the tokens lie
  int64_t tokens = 16;                  // tokens to copy
  int64_t vocab_size = 16;              // letters, the noise token and the marker
  int64_t evaluation_sequences = 1000;  // fresh sequences of an evaluation

  void visit(core::FieldVisitor& v);
};

// Sequences without end for training, evaluation_sequences others for evaluation.
std::unique_ptr<Task> make_selective_copying(const SelectiveCopyingOptions& options);

}  // namespace adder::tasks
