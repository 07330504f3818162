#pragma once

#include "adder/tasks/induction_heads.h"
#include "adder/tasks/language_model.h"
#include "adder/tasks/selective_copying.h"

namespace adder::tasks {

struct TaskOptions {
  std::string name = "language_model";
  LanguageModelOptions language_model;
  SelectiveCopyingOptions selective_copying;
  InductionHeadsOptions induction_heads;

  void visit(core::FieldVisitor& v);
};

std::unique_ptr<Task> make_task(const TaskOptions& options);

}  // namespace adder::tasks
