// ChildProcess: another program, from its start to its end, for commands that run one: with this
// process's environment and variables more, and signals as they are by default.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "snap/result.h"

namespace snap::cli {

class ChildProcess {
 public:
  struct Options {
    std::vector<std::pair<std::string, std::string>> environment;  ///< in place of, or added
    /// Descriptors for its standard input, output and error; -1: this process's.
    int input = -1, output = -1, errors = -1;
    bool own_group = false;  ///< Ctrl-C of the terminal does not reach it
  };
  /// Finds argv[0] by $PATH. The error has the errno: ENOENT if there is no such program.
  static Result<ChildProcess> start(std::vector<std::string> argv, Options options);

  pid_t pid() const noexcept { return pid_; }
  /// Its exit code, 128 + signal if one ended it. Blocks; call one of these, once.
  Result<int> wait();
  /// The same. Once this process is interrupted (interrupt.h) it, and what it has started, is asked
  /// to end, and killed if it does not: Cancelled. For one with a group of its own.
  Result<int> wait_unless_interrupted();

 private:
  ChildProcess(pid_t pid, std::string name) : pid_(pid), name_(std::move(name)) {}

  pid_t pid_;
  std::string name_;
};

}  // namespace snap::cli
