// UringLoop: the event loop on io_uring.
//
// All that a turn started goes to the kernel with one io_uring_enter, which also waits when there
// is nothing else to do; cached reads have completed when it returns. Starting and completing an
// op allocates nothing: its state lives in the IoOp.
//
// While the loop polls busily it asks a few sockets itself for what they receive: the ring would
// take two system calls for that, one that hands the receive over and one that completes it.
//
// Invariants:
// - An op that was accepted is never lost. What finds no submission entry, or would take the
//   number in flight beyond what the completion ring holds, waits in backlog_; so the completion
//   ring cannot overflow.
// - The kernel owns an IoOp's memory from prepare() to its completion.
// - The ring belongs to the thread that runs the loop (SINGLE_ISSUER). If another thread runs it
//   later, when nothing is in flight, the ring is made anew.
#pragma once

#include <liburing.h>

#include <cstdint>
#include <thread>
#include <vector>

#include "engine/io/busy_poll.h"
#include "engine/io/loop_core.h"
#include "engine/io/unique_fd.h"

namespace snap {

class UringLoop final : public LoopCore {
 public:
  /// Unsupported if the kernel has no io_uring, too old a one, or denies it.
  /// `busy_poll`: the limit of BusyPoll.
  static Result<std::unique_ptr<EventLoop>> create(const LoopOptions& options,
                                                   Clock::duration busy_poll = {});
  ~UringLoop() override;

  const char* name() const noexcept override { return "io_uring"; }
  bool submit(IoOp& op) override;
  void cancel(IoOp& op) override;

 protected:
  void begin_run() override;
  void turn(bool may_wait, std::optional<Clock::time_point> deadline) override;
  void cancel_waits() override;
  void wake() override;

 private:
  /// What a submission is for; see user_data in uring_loop.cpp.
  enum class Step : std::uint8_t { kRun, kPoll };
  struct Pending {
    IoOp* op;
    Step step;
  };

  UringLoop(const LoopOptions& options, Clock::duration busy_poll, UniqueFd wake_event);
  Result<void> open_ring();
  void close_ring();

  void start(IoOp& op, Step step);
  bool prepare(IoOp& op, Step step);
  void flush_backlog();
  void prepare_cancel(std::uint64_t user_data);
  void arm_wake();
  io_uring_sqe* next_entry();

  void enter(bool may_wait, std::optional<Clock::time_point> deadline);
  bool has_events() const noexcept;
  bool poll_busily(std::optional<Clock::time_point> deadline);
  bool try_held_back();
  void hand_over_held_back();
  void sleep(std::optional<Clock::time_point> deadline);
  void reap();
  void handle(std::uint64_t user_data, std::int32_t result);
  void finish(IoOp& op, std::int64_t result);

  void link_wait(IoOp& op);
  void unlink_wait(IoOp& op);

  const unsigned queue_depth_;
  io_uring ring_{};
  bool ring_open_ = false;
  bool ring_enabled_ = false;
  std::thread::id owner_;
  unsigned in_flight_ = 0;      ///< entries whose completion is to come
  unsigned max_in_flight_ = 0;  ///< what the completion ring holds, less a reserve for cancels
  std::vector<Pending> backlog_;
  std::vector<IoOp*> held_back_;  ///< receives that the ring gets when the loop does not poll
  IoOp* first_wait_ = nullptr;    ///< ops that wait for a peer; linked by next and loop_data
  UniqueFd wake_event_;
  bool wake_armed_ = false;
  BusyPoll busy_poll_;
};

}  // namespace snap
