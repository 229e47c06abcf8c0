// See short_options.h.
#include "tools/snapctl/short_options.h"

#include <CLI/CLI.hpp>

namespace snap::cli {

namespace {
constexpr char kMark = '\x01';  // in no word that a person types

/// CLI11 takes a single "" or "{}" for an empty list; no object is called so.
std::string refuse_empty(const std::string& value) {
  return value.empty() || value == "{}" ? "'" + value + "' is no name" : "";
}
}  // namespace

void mark_values(std::vector<std::string>& words) {
  bool options = true;
  for (std::string& word : words) {
    if (word == "--") options = false;
    const bool is_short = options && word.size() >= 3 && word[0] == '-' && word[1] != '-';
    if (is_short && word[2] == '=') word[2] = kMark;
    if (word.starts_with('[')) word.insert(word.begin(), kMark);
  }
}

std::string without_mark(std::string value) {
  if (!value.empty() && value[0] == kMark) value.erase(0, 1);
  return value;
}

void plain_values(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    // Else a value would swallow the words behind it.
    if (!option->get_positional()) option->allow_extra_args(false);
    if (option->get_expected_max() != 0) option->transform(without_mark);
    if (option->get_positional()) option->check(refuse_empty);
  }
}

}  // namespace snap::cli
