// Pace: keeps long work to a number of bytes a second.
#pragma once

#include <chrono>
#include <cstdint>

#include "snap/event_loop.h"
#include "snap/task.h"

namespace snap {

class Pace {
 public:
  /// 0: no limit.
  explicit Pace(std::uint64_t bytes_per_second)
      : rate_(bytes_per_second), begun_(EventLoop::current()->now()) {}

  /// Waits until `bytes` more are due.
  Task<void> took(std::uint64_t bytes) {
    done_ += bytes;
    if (rate_ == 0) co_return;
    const std::chrono::duration<double> due(static_cast<double>(done_) /
                                            static_cast<double>(rate_));
    const auto left = begun_ + std::chrono::duration_cast<EventLoop::Clock::duration>(due) -
                      EventLoop::current()->now();
    if (left > EventLoop::Clock::duration::zero()) co_await Sleep(left);
  }
  std::uint64_t done() const noexcept { return done_; }

 private:
  std::uint64_t rate_;
  std::uint64_t done_ = 0;
  EventLoop::Clock::time_point begun_;
};

}  // namespace snap
