// ThreadLoop: the event loop without io_uring. Files on helper threads that pread and pwrite,
// sockets on epoll.
//
// A read that the page cache can answer is done at once on the loop's thread (RWF_NOWAIT), so a
// warm volume pays no thread switch. Sockets are tried at once too; only what would wait goes to
// epoll. File operations that a helper has taken cannot be cancelled.
#pragma once

#include <unordered_map>

#include "engine/io/loop_core.h"
#include "engine/io/unique_fd.h"

namespace snap {

class ThreadLoop final : public LoopCore {
 public:
  static Result<std::unique_ptr<EventLoop>> create(const LoopOptions& options);

  const char* name() const noexcept override { return "threads"; }
  bool submit(IoOp& op) override;
  void cancel(IoOp& op) override;

 protected:
  void turn(bool may_wait, std::optional<Clock::time_point> deadline) override;
  void cancel_waits() override;
  void wake() override;

 private:
  ThreadLoop(const LoopOptions& options, UniqueFd epoll, UniqueFd wake_event);

  void handle_event(int fd, unsigned events);
  /// Registers interest in all that waits for `fd`; 0 or -errno.
  int arm(int fd);
  /// Queues `op` behind what waits for its descriptor already.
  void enqueue(IoOp& op);
  bool has_waiting(int fd, IoOpcode opcode) const;

  UniqueFd epoll_;
  UniqueFd wake_event_;
  /// Socket ops that wait, by descriptor, in order of arrival, linked by IoOp::next.
  std::unordered_map<int, IoOp*> waiting_;
  HelperPool file_threads_;
};

}  // namespace snap
