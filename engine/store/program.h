// Runs another program to its end: by an argument vector, never through a shell.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "snap/result.h"

namespace snap {

struct ProgramResult {
  int exit_code = 0;   ///< 128 + signal if a signal ended it
  std::string errors;  ///< the end of what it wrote to standard error, trimmed
  std::string output;  ///< the beginning of what it wrote to standard output, where asked for
};

/// The path of `name` in $PATH or, as an ordinary user's $PATH lacks them, the sbin folders.
std::optional<std::string> find_program(const std::string& name);

enum class Output { kDropped, kKept };
/// Runs argv[0] (a path) with standard input, and output unless it is kept, at /dev/null and
/// LC_ALL=C, in `directory` if that is not empty. Blocks: for helper threads.
Result<ProgramResult> run_program(std::vector<std::string> argv, Output output = Output::kDropped,
                                  const std::string& directory = {});

}  // namespace snap
