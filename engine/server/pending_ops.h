// PendingOps: waits (accept, poll, receive) of one loop that stop() ends all at once.
#pragma once

#include <unordered_set>

#include "snap/event_loop.h"
#include "snap/result.h"
#include "snap/task.h"

namespace snap::server {

/// Used on one loop. Outlives the tasks that wait in it.
class PendingOps {
 public:
  bool stopped() const noexcept { return stopped_; }

  /// Ends what waits, with Cancelled, and all that would wait later.
  void stop() {
    stopped_ = true;
    for (IoOp* op : waiting_)
      EventLoop::current()->cancel(*op);
  }

  /// Waits for a connection: the descriptor. Cancelled after stop().
  Task<Result<std::size_t>> accept(int fd) { return wait(IoOpcode::kAccept, fd, 0); }
  /// Waits for poll(2) events. Cancelled after stop().
  Task<Result<std::size_t>> poll(int fd, int events) { return wait(IoOpcode::kPoll, fd, events); }

 private:
  Task<Result<std::size_t>> wait(IoOpcode opcode, int fd, int flags) {
    if (stopped_) co_return Error(ErrorCode::kCancelled, "shutting down");
    IoOp op;
    op.opcode = opcode;
    op.fd = fd;
    op.flags = flags;
    waiting_.insert(&op);
    auto result = co_await op;
    waiting_.erase(&op);
    co_return result;
  }

  bool stopped_ = false;
  std::unordered_set<IoOp*> waiting_;
};

}  // namespace snap::server
