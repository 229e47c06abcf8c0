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
  anything_posted_ = true;
  if (sleeping_.exchange(false)) wake();
}

void LoopCore::offload_raw(std::function<void()> work) {
  helpers_.add(std::move(work));
}

void LoopCore::shutdown() {
  std::lock_guard guard(post_lock_);
  stopping_ = true;
  if (sleeping_.exchange(false)) wake();
}

void LoopCore::take_posted() {
  if (!anything_posted_) return;
  std::lock_guard guard(post_lock_);
  ready_.insert(ready_.end(), posted_.begin(), posted_.end());
  posted_.clear();
  anything_posted_ = false;
}

void LoopCore::begin_stop() {
  { std::lock_guard wait_for_shutdown(post_lock_); }
  stop_begun_ = true;
  timers_.take_all(ready_);
  cancel_waits();
}

bool LoopCore::go_to_sleep() {
  sleeping_ = true;
  if (!anything_posted_ && (!stopping_ || stop_begun_)) return true;
  sleeping_ = false;
  return false;
}

void LoopCore::run_until_idle() {
  begin_run();
  while (live_tasks_ != 0) {
    take_posted();
    if (stopping() && !stop_begun_) begin_stop();
    if (!timers_.empty()) timers_.take_due(now(), ready_);
    running_.swap(ready_);
    for (std::coroutine_handle<> h : running_)
      h.resume();
    running_.clear();
    if (live_tasks_ == 0) break;

    const bool sleep = ready_.empty() && go_to_sleep();
    turn(sleep, timers_.next());
    if (sleep) sleeping_ = false;
  }
}

}  // namespace snap
