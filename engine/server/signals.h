// SIGTERM, SIGINT and SIGHUP as events of a loop.
#pragma once

#include "engine/io/unique_fd.h"
#include "engine/server/pending_ops.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

/// Blocks SIGTERM, SIGINT, SIGHUP and SIGPIPE for this thread and all that it starts. Called before
/// the first thread and the first event loop: a thread that does not block them dies by them.
Result<void> block_stop_signals();

/// Receives the signals that block_stop_signals() blocked.
class StopSignals {
 public:
  static Result<StopSignals> open();

  /// Waits for the next one: its number. Cancelled when `waits` is stopped.
  Task<Result<int>> next(PendingOps& waits);

 private:
  explicit StopSignals(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace snap::server
