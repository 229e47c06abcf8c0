// Going to the background, with a report back: the command that was typed returns only once what it
// started is ready, or with the reason why it is not.
#pragma once

#include <string>
#include <variant>

#include "engine/io/unique_fd.h"
#include "snap/result.h"

namespace snap::server {

/// The background process's end. If it goes without a report, the parent says that it died.
class Readiness {
 public:
  explicit Readiness(UniqueFd pipe) : pipe_(std::move(pipe)) {}

  /// What detach() gives in the parent, for it to print.
  void ready(const std::string& text);
  /// The error that detach() gives in the parent.
  void failed(const Error& error);

 private:
  void send(char kind, const std::string& text);
  UniqueFd pipe_;
};

/// Forks. In the child, which leads a session of its own, has /dev/null for standard input, the
/// file `log_path` (made, appended to, mode 0600) for its outputs, and no other descriptors: a
/// Readiness. In the parent, after the child's report: its text. Called before the first thread and
/// the first event loop. The working directory stays, for relative paths.
Result<std::variant<Readiness, std::string>> detach(const std::string& log_path);

}  // namespace snap::server
