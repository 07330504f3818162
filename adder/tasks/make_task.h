#pragma once

#include "adder/tasks/induction_heads.h"
#include "adder/tasks/language_model.h"
#include "adder/tasks/selective_copying.h"

namespace adder::tasks {

// Which task, and the options of each.
struct TaskOptions {
  std::string name = "language_model";  // "language_model", "selective_copying" or "induction_heads": what is trained
  LanguageModelOptions language_model;  // next-token prediction on files
  SelectiveCopyingOptions selective_copying;  // copy the tokens that lie among noise
  InductionHeadsOptions induction_heads;      // recall what followed the special token

  void visit(core::FieldVisitor& v);
};

// The task of this name. Throws what making it throws.
std::unique_ptr<Task> make_task(const TaskOptions& options);

}  // namespace adder::tasks
