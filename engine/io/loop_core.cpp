#include "engine/io/loop_core.h"

#include <utility>

namespace snap {

bool waits_for_peer(IoOpcode opcode) noexcept {
  return opcode == IoOpcode::kAccept || opcode == IoOpcode::kRecv || opcode == IoOpcode::kPoll;
}

std::uint64_t LoopCore::add_timer(Clock::time_point when, std::coroutine_handle<> h) {
  // While stopping, no one waits: it is due at once.
  return timers_.add(stopping() ? Clock::time_point::min() : when, h);
}

void LoopCore::fire_timer(std::uint64_t ticket) {
  if (std::coroutine_handle<> h = timers_.take(ticket)) ready_.push_back(h);
}

void LoopCore::post(std::coroutine_handle<> h) {
  std::lock_guard guard(post_lock_);
  posted_.push_back(h);
  if (std::exchange(sleeping_, false)) wake();
}

void LoopCore::offload_raw(std::function<void()> work) {
  helpers_.add(std::move(work));
}

void LoopCore::shutdown() {
  std::lock_guard guard(post_lock_);
  stopping_.store(true, std::memory_order_release);
  if (std::exchange(sleeping_, false)) wake();
}

void LoopCore::take_posted() {
  std::lock_guard guard(post_lock_);
  ready_.insert(ready_.end(), posted_.begin(), posted_.end());
  posted_.clear();
}

bool LoopCore::go_to_sleep() {
  std::lock_guard guard(post_lock_);
  if (!posted_.empty() || (stopping() && !stop_begun_)) return false;
  sleeping_ = true;
  return true;
}

void LoopCore::awake() {
  std::lock_guard guard(post_lock_);
  sleeping_ = false;
}

void LoopCore::run_until_idle() {
  begin_run();
  while (live_tasks_ != 0) {
    take_posted();
    if (stopping() && !stop_begun_) {
      stop_begun_ = true;
      timers_.take_all(ready_);
      cancel_waits();
    }
    if (!timers_.empty()) timers_.take_due(now(), ready_);
    running_.swap(ready_);
    for (std::coroutine_handle<> h : running_)
      h.resume();
    running_.clear();
    if (live_tasks_ == 0) break;

    const bool sleep = ready_.empty() && go_to_sleep();
    turn(sleep, timers_.next());
    if (sleep) awake();
  }
}

}  // namespace snap
