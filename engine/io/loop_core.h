// LoopCore: what the three kinds of event loop share: the run queue, timers, posts from other
// threads, helper threads, and the order of a turn. A kind adds how I/O is submitted and waited
// for.
//
// Invariants:
// - ready_ holds every coroutine that may run; a turn runs the ones that were there when it began.
// - A post is never lost: who posts first says so and then looks whether the loop sleeps; the loop
//   first says that it sleeps and then looks whether something was posted. One of them sees the
//   other (both are sequentially consistent), and the loop needs no lock while nothing is posted.
// - Who posts or shuts down lets go of the lock last, and the loop takes it before it acts on
//   either: so it may be destroyed as soon as it has.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "engine/io/helper_pool.h"
#include "engine/io/timer_queue.h"
#include "snap/event_loop.h"

namespace snap {

/// Accepts, receives and polls wait for someone else, perhaps for ever; shutdown() ends them.
bool waits_for_peer(IoOpcode opcode) noexcept;

class LoopCore : public EventLoop {
 public:
  void schedule(std::coroutine_handle<> h) override { ready_.push_back(h); }
  Clock::time_point now() override { return Clock::now(); }
  std::uint64_t add_timer(Clock::time_point when, std::coroutine_handle<> h) override;
  void fire_timer(std::uint64_t ticket) override;
  void post(std::coroutine_handle<> h) override;
  void offload_raw(std::function<void()> work) override;
  void shutdown() override;

 protected:
  explicit LoopCore(unsigned offload_threads) : helpers_(offload_threads) {}

  void run_until_idle() override;

  // ---- What a kind of loop provides; all but wake() on the loop's thread

  /// The loop is about to turn on this thread.
  virtual void begin_run() {}
  /// Submits what was started and reaps what has completed. Waits for a completion or wake() until
  /// `deadline` (for ever if there is none) if `may_wait`.
  virtual void turn(bool may_wait, std::optional<Clock::time_point> deadline) = 0;
  /// Cancels every operation in flight that waits_for_peer().
  virtual void cancel_waits() = 0;
  /// Makes a waiting turn() return. From any thread, with the lock held: it must not block.
  virtual void wake() = 0;

  /// Sets the result of an op in flight and queues its waiter. From here on the op has no waiter:
  /// a cancel that comes before the waiter runs finds nothing to do.
  void complete(IoOp& op, std::int64_t result) {
    op.result = result;
    ready_.push_back(std::exchange(op.waiter, nullptr));
  }

  std::vector<std::coroutine_handle<>> ready_;

 private:
  void take_posted();
  void begin_stop();
  bool go_to_sleep();

  TimerQueue timers_;
  std::vector<std::coroutine_handle<>> running_;
  bool stop_begun_ = false;

  std::mutex post_lock_;  // over posted_, and over calls of wake()
  std::vector<std::coroutine_handle<>> posted_;
  std::atomic<bool> anything_posted_ = false;
  std::atomic<bool> sleeping_ = false;

  HelperPool helpers_;  // last: joined first, for helpers post
};

}  // namespace snap
