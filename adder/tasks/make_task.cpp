#include "adder/tasks/make_task.h"

#include "adder/core/check.h"

namespace adder::tasks {

void TaskOptions::visit(core::FieldVisitor& v) {
  v.choice("name", name, "what is trained", {"language_model", "selective_copying", "induction_heads"});
  v.group("language_model", language_model, "next-token prediction on files");
  v.group("selective_copying", selective_copying, "copy the tokens that lie among noise");
  v.group("induction_heads", induction_heads, "recall what followed the special token");
}

std::unique_ptr<Task> make_task(const TaskOptions& options) {
  if (options.name == "language_model") return make_language_model(options.language_model);
  if (options.name == "selective_copying") return make_selective_copying(options.selective_copying);
  if (options.name == "induction_heads") return make_induction_heads(options.induction_heads);
  fail("task.name must be language_model, selective_copying or induction_heads, got \"{}\"", options.name);
}

}  // namespace adder::tasks
