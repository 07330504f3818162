#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "adder/data/tokenize.h"
#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/output.h"

namespace adder::cli {
namespace {

struct Arguments {
  std::vector<std::string> files;
  std::string tokenizer, out, separator;
  data::TokenizeOptions options;
  int64_t threads = 0;
  bool no_end = false;
};

// Escapes as in C: a shell has no easy way to give a form feed.
std::string unescaped(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char next = text[i] == '\\' && i + 1 < text.size() ? text[i + 1] : '\0';
    const char plain = next == 'n' ? '\n' : next == 't' ? '\t' : next == 'f' ? '\f' : next == '\\' ? '\\' : '\0';
    out += plain != '\0' ? plain : text[i];
    if (plain != '\0') ++i;
  }
  return out;
}

void report(const data::TokenizeProgress& p) {
  static const bool terminal = ::isatty(STDERR_FILENO) == 1;
  if (!p.done && !terminal) return;
  const std::string name = fmt::format("{}/{} {}", p.number, p.files, p.file.string());
  if (p.kept)
    fmt::print(stderr, "{}: {} tokens, kept from the run before\n", name, p.tokens);
  else
    fmt::print(stderr, "{}{}: {} tokens in {} documents, {:.1f} MB/s{}", terminal ? "\r" : "", name, p.tokens,
               p.documents, static_cast<double>(p.bytes) / 1e6 / std::max(p.seconds, 1e-9), p.done ? "\n" : "   ");
}

void run(Arguments a) {
  a.options.separator = unescaped(a.separator);
  a.options.end_of_text = !a.no_end;
  a.options.threads = a.threads > 0 ? a.threads : at::get_num_threads();
  const int64_t tokens = data::tokenize_files({a.files.begin(), a.files.end()}, a.tokenizer, a.out, a.options, report);
  fmt::print("{}/tokens.bin: {} tokens\n", a.out, tokens);
}

}  // namespace

void add_data_command(CLI::App& app) {
  auto* data = app.add_subcommand("data", "Prepare data");
  data->require_subcommand(1);
  auto* command = data->add_subcommand("tokenize", "Make a token file of texts, for task.language_model.token_file");
  auto a = std::make_shared<Arguments>();
  command->add_option("files", a->files, "texts, or .jsonl with a text a line; also .xz, .gz, .zst")->required();
  command->add_option("--tokenizer", a->tokenizer, "a tokenizer.json")->required();
  command->add_option("--out", a->out, "the folder for tokens.bin and a copy of the tokenizer")->required();
  command->add_option("--separator", a->separator,
                      "text after which another document begins, with \\n, \\t, \\f (default: each file is one)");
  command->add_option("--field", a->options.field, "the key of the text in a line of .jsonl")->capture_default_str();
  command->add_flag("--no-end", a->no_end, "no <|endoftext|> after each document");
  add_threads(*command, a->threads);
  command->callback([a] { run(*a); });
}

}  // namespace adder::cli
