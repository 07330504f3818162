#pragma once

#include "adder/tasks/task.h"

namespace adder::tasks {

// Next-token prediction on text files as bytes, or on a token file.
struct LanguageModelOptions {
  std::vector<std::string> files;    // text files (.txt or any other, .xz, .gz, .zst), read as bytes
  std::string token_file;            // a file of tokens instead of text files
  std::string document_separator;    // text after which a new document starts inside a file
  double validation_fraction = 0.1;  // share at the end that is held out
  int64_t length = 256;              // tokens of a training window
  int64_t evaluation_length = 0;     // tokens of an evaluation window; 0: as in training
  // "random", "shuffled" or "carried": training windows: anywhere, each once an epoch, or in order with the
  // state carried over
  std::string windows = "random";
  bool reset_at_documents = false;  // the state starts from zero at each document

  void visit(core::FieldVisitor& v);
};

// Opens the data. Throws adder::Error where a file cannot be read or the text is too short for its windows.
std::unique_ptr<Task> make_language_model(const LanguageModelOptions& options);

}  // namespace adder::tasks
