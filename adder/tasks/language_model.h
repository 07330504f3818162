#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// Next-token prediction on text files as bytes, or on a token file.
struct LanguageModelOptions {
  std::vector<std::string> files;
  std::string token_file;
  std::string document_separator;
  double validation_fraction = 0.1;
  int64_t length = 256;
  int64_t evaluation_length = 0;
  std::string windows = "random";
  bool reset_at_documents = false;

  void visit(core::FieldVisitor& v);
};

std::unique_ptr<Task> make_language_model(const LanguageModelOptions& options);

}  // namespace adder::tasks
